//! UDP through a peer, at the end where it comes out: a socket of its own for each flow.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::UdpSocket;

use super::datagrams::{Activity, FlowNumber, Flows, MAX_PAYLOAD_LEN, OpenFlow, Outlet, with_room};
use crate::config::HostPort;

/// A flow with its way out.
pub struct FarFlow {
    socket: Arc<UdpSocket>,
    flow: OpenFlow,
}

/// Opens the way out to `to` for the flow of a peer's stream.
pub async fn open(to: &HostPort, flows: &Arc<Flows>, stream: quinn::StreamId) -> Result<FarFlow, String> {
    let flow = FlowNumber::of(stream).ok_or("the connection has had too many streams")?;
    let socket = Arc::new(reach(to).await.map_err(|error| error.to_string())?);
    let outlet = Outlet { socket: socket.clone(), to: None, activity: Activity::begin() };
    Ok(FarFlow { flow: flows.open(flow, outlet), socket })
}

impl FarFlow {
    /// Carries answers back until the flow is over, and says why it is.
    pub async fn carry(self, from_peer: &mut quinn::RecvStream) -> &'static str {
        let FarFlow { socket, flow } = self;
        let back = async {
            let mut buffer = vec![0; MAX_PAYLOAD_LEN];
            loop {
                match socket.recv(&mut buffer).await {
                    // What does not fit was counted.
                    Ok(len) => drop(flow.send(with_room(buffer.get(..len).unwrap_or_default()))),
                    // The service is not there, as its host says; it may come. The error is taken with its telling.
                    Err(error) => tracing::debug!(%error, "a UDP flow's destination does not answer"),
                }
            }
        };
        tokio::select! {
            never = back => never,
            why = flow.over(from_peer) => why,
        }
    }
}

/// A socket that is connected to `to`.
async fn reach(to: &HostPort) -> io::Result<UdpSocket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((to.host(), to.port())).await? {
        match connected(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    // Datagrams are given to it without waiting.
    socket.writable().await?;
    Ok(socket)
}
