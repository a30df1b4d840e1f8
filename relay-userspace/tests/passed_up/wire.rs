//! Frames as they are on an interface: sent as they stand, and heard with their tag (packet(7)).
#![expect(unsafe_code, reason = "packet sockets are not in std")]

use std::ffi::CString;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{mem, ptr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// An interface of the calling thread's network namespace.
pub struct Wire(OwnedFd);

/// A UDP packet that came by the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The VLAN of its tag.
    pub vlan: Option<u16>,
    pub tos: u8,
    pub ttl: u8,
    /// May not be fragmented; always so in IPv6.
    pub dont_fragment: bool,
    /// It has a UDP checksum.
    pub checksum: bool,
    pub payload: Vec<u8>,
}

impl Wire {
    pub fn open(interface: &str) -> Wire {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        let name = CString::new(interface).unwrap();
        // SAFETY: the name is a string that ends with 0 and outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert_ne!(index, 0, "{interface}");
        // SAFETY: the call takes no pointers.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(every_protocol)) };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was just made and is nobody else's.
        let wire = Wire(unsafe { OwnedFd::from_raw_fd(socket) });
        // SAFETY: zeros are a valid value of this plain C structure.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every_protocol;
        address.sll_ifindex = index as i32;
        // SAFETY: the address is a local of the length that is told.
        let bound = unsafe { libc::bind(socket, (&raw const address).cast(), size_of_val(&address) as u32) };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        wire.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1i32);
        wire.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &libc::timeval { tv_sec: 10, tv_usec: 0 });
        wire
    }

    fn set<T>(&self, level: i32, option: i32, value: &T) {
        let len = size_of::<T>() as u32;
        // SAFETY: the value is a plain C structure of the length that is told.
        let set =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, ptr::from_ref(value).cast(), len) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }

    /// Puts a frame on the wire.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the frame is a slice of the length that is told, and is only read.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next whole UDP packet to `port` with `payload` that came by the wire.
    pub fn hear(&self, port: u16, payload: &[u8]) -> Heard {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let (frame, vlan) = self.receive();
            if let Some(heard) = read(&frame, vlan, port).filter(|heard| heard.payload == payload) {
                return heard;
            }
        }
        panic!("not heard for port {port}: {payload:02x?}");
    }

    /// The next frame, and the VLAN of the tag that the kernel has taken off it.
    fn receive(&self) -> (Vec<u8>, Option<u16>) {
        const TP_STATUS_VLAN_VALID: u32 = 1 << 4; // linux/if_packet.h
        let mut frame = vec![0; 1 << 16];
        let mut control = [0u64; 16];
        let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
        // SAFETY: null pointers and zero lengths are a valid value of this plain C structure.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the header's pointers go to locals of this function, of the lengths that are told.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        assert!(len >= 0, "{}", io::Error::last_os_error());
        frame.truncate(len as usize);
        // SAFETY: the kernel has filled the header in, and its control buffer still lives.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
        let vlan = header.and_then(|header| {
            assert_eq!((header.cmsg_level, header.cmsg_type), (libc::SOL_PACKET, libc::PACKET_AUXDATA));
            // SAFETY: data of this type are one `tpacket_auxdata`; read without regard to alignment.
            let facts: libc::tpacket_auxdata =
                unsafe { ptr::read_unaligned(libc::CMSG_DATA(ptr::from_ref(header)).cast()) };
            (facts.tp_status & TP_STATUS_VLAN_VALID != 0).then_some(facts.tp_vlan_tci & 0xfff)
        });
        (frame, vlan)
    }
}

/// Sends datagrams of `size` bytes as one, for the hardware to take apart (udp(7), UDP_SEGMENT); a veth passes it whole.
pub fn send_merged(socket: &UdpSocket, datagrams: &[u8], size: u16, to: SocketAddr) {
    let size = i32::from(size);
    let (level, len) = (libc::SOL_UDP, size_of_val(&size) as u32);
    // SAFETY: the value is a local of the length that is told.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, libc::UDP_SEGMENT, (&raw const size).cast(), len)
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
    assert_eq!(socket.send_to(datagrams, to).unwrap(), datagrams.len());
}

fn read(frame: &[u8], vlan: Option<u16>, port: u16) -> Option<Heard> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Udp(udp)) = packet.transport else { return None };
    if udp.destination_port() != port {
        return None;
    }
    let (tos, ttl, dont_fragment) = match packet.net? {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            (ip.dcp().value() << 2 | ip.ecn().value(), ip.ttl(), ip.dont_fragment())
        }
        NetSlice::Ipv6(ip) => (ip.header().traffic_class(), ip.header().hop_limit(), true),
        _ => return None,
    };
    let payload = udp.payload().to_vec();
    Some(Heard { vlan, tos, ttl, dont_fragment, checksum: udp.checksum() != 0, payload })
}
