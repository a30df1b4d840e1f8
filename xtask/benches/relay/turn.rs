//! coturn, and as much of a TURN client (RFC 8656) as a benchmark of its data path needs: Allocate, ChannelBind and
//! ChannelData over UDP, without authentication.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use xtask::lab::{Host, Process};
use xtask::tool::Tool;

/// Bytes that ChannelData adds to a payload.
pub const CHANNEL_HEADER_LEN: usize = 4;

/// A running coturn. Dropping it ends it.
pub struct Coturn {
    process: Process,
    address: SocketAddr,
}

impl Coturn {
    /// Starts coturn on `host`, listening on `address` and relaying from its IP, on CPU `cpu` alone with one relay
    /// thread, and waits until it listens. It logs to `directory`.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(host: &Host, address: SocketAddr, cpu: usize, directory: &Path) -> anyhow::Result<Coturn> {
        let (ip, port) = (address.ip(), address.port());
        let name = format!("coturn-{port}");
        let state = |ending: &str| directory.join(format!("{name}.{ending}"));
        // -n: no configuration file. Nothing that its data path would have to check is on: no authentication, no quota.
        let tool = Tool::new("taskset")
            .args(["--cpu-list", &cpu.to_string(), "turnserver"])
            .words("-n --no-auth --no-tls --no-dtls --no-cli --no-tcp --no-tcp-relay --relay-threads=1")
            .words("--user-quota=0 --total-quota=0 --log-file=stdout --simple-log --realm=bench")
            .args([format!("--listening-ip={ip}"), format!("--relay-ip={ip}")])
            .args([format!("--listening-port={port}"), "--min-port=49152".into(), "--max-port=65535".into()])
            .args([
                format!("--pidfile={}", state("pid").display()),
                format!("--db={}", state("db").display()),
            ]);
        let mut process = host.start(&tool, directory, &name)?;
        // It does not say when. This is the list of its namespace's sockets.
        let socket = format!(":{port:04X} ");
        let listens = |process: &Process| {
            let sockets = std::fs::read_to_string(format!("/proc/{}/net/udp", process.id())).ok()?;
            sockets.contains(&socket).then_some(())
        };
        process.wait_until("the listener", Duration::from_secs(10), listens)?;
        Ok(Coturn { process, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

/// A relayed address that a TURN server has allocated to a socket.
#[derive(Debug)]
pub struct Allocation {
    socket: UdpSocket,
    relayed: SocketAddr,
    channels: u16,
    transactions: u32,
}

impl Allocation {
    /// Has `server` allocate a relayed address to `socket`, which is connected to it from then on. It lasts ten minutes.
    ///
    /// # Errors
    /// The server refuses, or does not answer.
    pub fn new(socket: UdpSocket, server: SocketAddr) -> anyhow::Result<Allocation> {
        socket.connect(server).with_context(|| format!("cannot reach {server}"))?;
        socket.set_read_timeout(Some(RETRANSMIT_AFTER)).context("cannot wait for answers")?;
        let mut allocation = Allocation { socket, relayed: server, channels: 0, transactions: 0 };
        let udp = [IPPROTO_UDP, 0, 0, 0];
        let answer = allocation.ask(ALLOCATE, &attribute(REQUESTED_TRANSPORT, &udp))?;
        let relayed = attributes(&answer).find(|(kind, _)| *kind == XOR_RELAYED_ADDRESS);
        allocation.relayed =
            relayed.and_then(|(_, value)| unmasked(value)).context("an answer without a relayed address")?;
        Ok(allocation)
    }

    /// The socket, connected to the server: what is sent to it as [`channel_data`] goes to the channel's peer.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// The address that peers send to and hear from.
    pub fn relayed(&self) -> SocketAddr {
        self.relayed
    }

    /// Binds a channel to `peer`, and returns its number. It lasts ten minutes, the permission of the peer five.
    ///
    /// # Errors
    /// The server refuses, or does not answer.
    pub fn bind_channel(&mut self, peer: SocketAddr) -> anyhow::Result<u16> {
        let channel = FIRST_CHANNEL + self.channels;
        let [high, low] = channel.to_be_bytes();
        let peer = masked(peer).context("a peer that is not IPv4")?;
        let body =
            [attribute(CHANNEL_NUMBER, &[high, low, 0, 0]), attribute(XOR_PEER_ADDRESS, &peer)].concat();
        self.ask(CHANNEL_BIND, &body)?;
        self.channels += 1;
        Ok(channel)
    }

    /// Sends a request until it is answered, and returns the attributes of the answer.
    fn ask(&mut self, method: u16, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.transactions += 1;
        let mut transaction = [0; 12];
        transaction[..4].copy_from_slice(&self.transactions.to_be_bytes());
        let length = (body.len() as u16).to_be_bytes();
        let request =
            [&method.to_be_bytes()[..], &length, &MAGIC_COOKIE.to_be_bytes(), &transaction, body].concat();
        for _ in 0..ATTEMPTS {
            self.socket.send(&request).context("cannot send a TURN request")?;
            if let Some((kind, attributes)) = self.hear(&transaction)? {
                if kind != method | SUCCESS {
                    bail!("the TURN server refuses a request of type {method:#06x}: {attributes:02x?}");
                }
                return Ok(attributes);
            }
        }
        bail!("the TURN server does not answer a request of type {method:#06x}")
    }

    /// The answer to `transaction`: its type and attributes. None, if it does not come in time.
    fn hear(&self, transaction: &[u8; 12]) -> anyhow::Result<Option<(u16, Vec<u8>)>> {
        let mut buffer = [0; 1500];
        loop {
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error).context("no answer of the TURN server"),
            };
            if let Some((header, attributes)) = buffer[..length].split_at_checked(HEADER_LEN)
                && header[8..] == transaction[..]
            {
                return Ok(Some((u16::from_be_bytes([header[0], header[1]]), attributes.to_vec())));
            }
        }
    }
}

/// `payload` as it is sent to the server for the peer of `channel`, and as it comes from there. Over UDP it is not padded.
pub fn channel_data(channel: u16, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u16;
    [&channel.to_be_bytes()[..], &length.to_be_bytes(), payload].concat()
}

const RETRANSMIT_AFTER: Duration = Duration::from_millis(500);
const ATTEMPTS: u32 = 10;

const HEADER_LEN: usize = 20;
const MAGIC_COOKIE: u32 = 0x2112_a442;
const SUCCESS: u16 = 0x0100;

const ALLOCATE: u16 = 0x0003;
const CHANNEL_BIND: u16 = 0x0009;

const CHANNEL_NUMBER: u16 = 0x000c;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const XOR_RELAYED_ADDRESS: u16 = 0x0016;
const REQUESTED_TRANSPORT: u16 = 0x0019;

const IPPROTO_UDP: u8 = 17;
const FIRST_CHANNEL: u16 = 0x4000;

/// An attribute whose value needs no padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = value.len() as u16;
    [&kind.to_be_bytes()[..], &length.to_be_bytes(), value].concat()
}

/// The attributes in `bytes`: type and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([c, d]));
        let value = bytes.get(4..4 + length)?;
        bytes = bytes.get(4 + length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_be_bytes([a, b]), value))
    })
}

const FAMILY_V4: u8 = 1;

/// The value of an XOR address attribute. None for IPv6, which the benchmark does not use here.
fn masked(address: SocketAddr) -> Option<[u8; 8]> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    let [p, q] = (address.port() ^ (MAGIC_COOKIE >> 16) as u16).to_be_bytes();
    let [a, b, c, d] = (u32::from(ip) ^ MAGIC_COOKIE).to_be_bytes();
    Some([0, FAMILY_V4, p, q, a, b, c, d])
}

/// The address in such a value.
fn unmasked(value: &[u8]) -> Option<SocketAddr> {
    let [_, FAMILY_V4, p, q, a, b, c, d] = *value.first_chunk()? else { return None };
    let ip = Ipv4Addr::from(u32::from_be_bytes([a, b, c, d]) ^ MAGIC_COOKIE);
    Some((ip, u16::from_be_bytes([p, q]) ^ (MAGIC_COOKIE >> 16) as u16).into())
}
