//! What an agent's interface really sees: tcpdump, read back.

use std::net::{SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use xtask::lab::{AGENT_INTERFACE, Lab, Namespace, Process};
use xtask::tool::Tool;

use super::world::{RELAY, wait_for};

/// A running capture of the UDP datagrams between an agent and the relay.
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

/// A captured datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub payload: Vec<u8>,
}

impl Capture {
    /// Starts capturing at `lab`'s agent of this number. Datagrams are seen as they are on a wire: neither the agent's
    /// interface nor the relay's leaves segments to the next, and the agent's merges nothing.
    pub fn start(lab: &Lab, agent: usize) -> Capture {
        let (agent, directory) = (&lab.agents[agent], lab.directory());
        agent.run(&Tool::new("ethtool").words("-K e0 tx off gso off gro off")).unwrap();
        lab.relay.run(&Tool::new("ethtool").words("-K r0 tx-udp-segmentation off")).unwrap();
        let file = directory.join(format!("{}.pcap", agent.name()));
        let tool = Tool::new("tcpdump")
            .words("--relinquish-privileges=root --no-promiscuous-mode -n -U --buffer-size=262144")
            .args(["-i", AGENT_INTERFACE, "-w"])
            .arg(&file)
            .words(&format!("udp and host {} and port {}", RELAY.ip(), RELAY.port()));
        let mut tcpdump = agent.host().start(&tool, directory, &format!("{}-tcpdump", agent.name())).unwrap();
        let listening = |tcpdump: &Process| tcpdump.log().contains("listening on").then_some(());
        tcpdump.wait_until("the start", Duration::from_secs(5), listening).unwrap();
        Capture { tcpdump, file }
    }

    /// Ends the capture. It must not have missed anything.
    pub fn finish(mut self, agent: &Namespace) -> Vec<Datagram> {
        // tcpdump throws away what it has not read yet when it is stopped: so it must have read this first.
        const LAST: &[u8] = b"the last datagram of this capture";
        let send_last = || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(LAST, RELAY).unwrap();
        agent.inside(send_last).unwrap();
        wait_for("the capture's last datagram", Duration::from_secs(20), || {
            let file = std::fs::read(&self.file).unwrap();
            // Keepalives may follow it.
            let end = &file[file.len().saturating_sub(1 << 16)..];
            end.windows(LAST.len()).any(|bytes| bytes == LAST).then_some(())
        });
        self.tcpdump.signal(libc::SIGINT);
        self.tcpdump.wait_success(Duration::from_secs(20)).unwrap();
        let log = self.tcpdump.log();
        assert!(log.contains("0 packets dropped by kernel"), "the capture is incomplete: {log}");
        datagrams(&std::fs::read(&self.file).unwrap())
    }
}

/// The UDP datagrams in a pcap file of Ethernet frames.
fn datagrams(pcap: &[u8]) -> Vec<Datagram> {
    const FILE_HEADER: usize = 24;
    const RECORD_HEADER: usize = 16;
    let mut datagrams = Vec::new();
    let mut rest = &pcap[FILE_HEADER..];
    while rest.len() > RECORD_HEADER {
        let captured = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        let on_wire = u32::from_le_bytes(rest[12..16].try_into().unwrap()) as usize;
        assert_eq!(captured, on_wire, "captured whole");
        datagrams.push(datagram(&rest[RECORD_HEADER..RECORD_HEADER + captured]));
        rest = &rest[RECORD_HEADER + captured..];
    }
    datagrams
}

/// The datagram in an Ethernet frame with a plain IPv4 header.
fn datagram(frame: &[u8]) -> Datagram {
    const ETHERNET: usize = 14;
    const IP: usize = 20;
    const UDP: usize = 8;
    assert_eq!(frame[ETHERNET], 0x45, "IPv4 without options");
    let ip = &frame[ETHERNET..];
    let udp = &ip[IP..];
    let port = |at: usize| u16::from_be_bytes(udp[at..at + 2].try_into().unwrap());
    let address = |at: usize| std::net::Ipv4Addr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
    let length = usize::from(port(4));
    Datagram {
        from: SocketAddrV4::new(address(12), port(0)),
        to: SocketAddrV4::new(address(16), port(2)),
        payload: udp[UDP..length].to_vec(),
    }
}
