//! Which socket of the group a datagram comes to, and what does not come to control's: pure.
//!
//! The kernel drops what does not fit into a socket's queue before userspace sees it. Control has a socket of its own so
//! that a flood of relayed datagrams cannot fill the queue that control waits in; and who floods that is kept out of it.

use std::net::{IpAddr, SocketAddr};

use libc::{
    BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JGE, BPF_JSET, BPF_LDX,
    BPF_LEN, BPF_MISC, BPF_MOD, BPF_MSH, BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_W, BPF_X, BPF_XOR,
};
use relay_common::BIND_MAGIC_LEN;

/// Bytes that every connection id of ours begins with: of relayed connections' ids one in 2^32 begins so too.
pub const TAG_LEN: usize = 4;

/// What tells our control datagrams from relayed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// What every bind datagram begins with; the two highest bits of the first byte are clear.
    pub bind_magic: [u8; BIND_MAGIC_LEN],
    /// What every connection id of ours begins with.
    pub connection_tag: [u8; TAG_LEN],
}

impl Marks {
    /// The classic BPF program that chooses among the sockets of the group: 0 for what control is in need of, and 1 +
    /// hash(source) % `relayed` for the rest. `relayed` is at least 1. Which bytes hold the source depends on the family.
    ///
    /// Control needs bind datagrams, packets to our connection ids, and what begins a connection: an Initial packet of
    /// QUIC version 1, which a client sends in datagrams of 1200 bytes or more (RFC 9000 section 14.1). Other long headers
    /// may be the relayed connections' own; those that QUIC answers nevertheless (a version that we do not speak) do not
    /// need to be answered under overload.
    ///
    /// The program is given the UDP payload; the IP header is reached below it. Reading past the end ends it with 0. It must
    /// not be replaced while datagrams come: most kernels free the old one at once, though it may be running.
    pub fn program(&self, relayed: u32, ipv4: bool) -> Vec<libc::sock_filter> {
        let [a, b, c, d, e, f, g, h] = self.bind_magic;
        let first = u32::from_be_bytes([a, b, c, d]);
        let second = u32::from_be_bytes([e, f, g, h]);
        let tag = u32::from_be_bytes(self.connection_tag);
        let mut program = vec![
            load(BPF_W | BPF_LEN, 0),                   // 0: shorter than any datagram of ours?
            jump(BPF_JGE, MIN_CONTROL, 0, 19),          // 1: to HASH
            load(BPF_B | BPF_ABS, 0),                   // 2
            alu(BPF_AND, LONG_HEADER_AND_FIXED),        // 3
            jump(BPF_JEQ, LONG_HEADER_AND_FIXED, 3, 0), // 4: to LONG
            jump(BPF_JEQ, u32::from(FIXED_BIT), 0, 10), // 5: else to MAGIC
            load(BPF_W | BPF_ABS, 1),                   // 6: a short header: is the connection id ours?
            jump(BPF_JEQ, tag, 12, 13),                 // 7: to CONTROL, else to HASH
            load(BPF_W | BPF_ABS, 6),                   // 8: LONG: after version and length, is the id ours?
            jump(BPF_JEQ, tag, 10, 0),                  // 9: to CONTROL
            load(BPF_W | BPF_ABS, 1),                   // 10
            jump(BPF_JEQ, QUIC_VERSION_1, 0, 9),        // 11: else to HASH
            load(BPF_B | BPF_ABS, 0),                   // 12
            jump(BPF_JSET, NOT_INITIAL, 7, 0),          // 13: to HASH
            load(BPF_W | BPF_LEN, 0),                   // 14
            jump(BPF_JGE, MIN_INITIAL_DATAGRAM, 4, 5),  // 15: to CONTROL, else to HASH
            load(BPF_W | BPF_ABS, 0),                   // 16: MAGIC
            jump(BPF_JEQ, first, 0, 3),                 // 17: else to HASH
            load(BPF_W | BPF_ABS, 4),                   // 18
            jump(BPF_JEQ, second, 0, 1),                // 19: else to HASH
            give(0),                                    // 20: CONTROL
        ];
        program.extend(hash_source(relayed.max(1), ipv4)); // 21: HASH
        program
    }
}

/// Whether a datagram may be QUIC: the header form bit or the fixed bit is set (RFC 9000 section 17).
pub fn may_be_quic(payload: &[u8]) -> bool {
    payload.first().is_some_and(|first| first & (LONG_HEADER | FIXED_BIT) != 0)
}

const LONG_HEADER: u8 = 0x80;
const FIXED_BIT: u8 = 0x40;
const LONG_HEADER_AND_FIXED: u32 = (LONG_HEADER | FIXED_BIT) as u32;

/// No datagram for control is shorter, and the program reads no byte behind it: a long header's connection id stands behind
/// its first byte, the version and the id's length.
const MIN_CONTROL: u32 = 6 + TAG_LEN as u32;

const QUIC_VERSION_1: u32 = 1;

/// The bits of a long header's first byte that are clear in an Initial packet of version 1.
const NOT_INITIAL: u32 = 0x30;

/// What a datagram with an Initial packet has at least.
const MIN_INITIAL_DATAGRAM: u32 = 1200;

/// The classic BPF program that keeps datagrams of `sources` out of a socket, bind datagrams excepted: by those a session
/// lives. As a filter of the socket it may be replaced at any time.
///
/// Sources are told by a hash that `factor`, an odd number, makes: whoever does not know it cannot tell which other source
/// is taken for one. The program is given the datagram from its UDP header on.
pub fn keep_out(
    sources: impl IntoIterator<Item = SocketAddr>,
    factor: u32,
    ipv4: bool,
) -> Vec<libc::sock_filter> {
    const UDP_HEADER_LEN: u32 = 8;
    let mut program =
        vec![load(BPF_B | BPF_ABS, UDP_HEADER_LEN), jump(BPF_JSET, LONG_HEADER_AND_FIXED, 1, 0), give(WHOLE)];
    program.extend(source_word(factor, ipv4));
    for source in sources {
        program.extend([jump(BPF_JEQ, word_of(source, factor), 0, 1), give(NOTHING)]);
    }
    program.push(give(WHOLE));
    program
}

/// What a socket's filter says: how many bytes of a datagram it lets in.
const NOTHING: u32 = 0;
const WHOLE: u32 = u32::MAX;

/// Ends with 1 + hash(source address, source port) % `relayed`: one source's datagrams always come to one reader, so
/// they keep their order. An attacker who chooses sources can fill one reader's queue; it could fill all of them.
fn hash_source(relayed: u32, ipv4: bool) -> Vec<libc::sock_filter> {
    const ODD: u32 = 0x9e37_79b1; // 2^32 / golden ratio, Knuth 6.4
    if relayed == 1 {
        return vec![give(1)];
    }
    let mut program = source_word(ODD, ipv4);
    program.extend([
        alu(BPF_MUL, ODD),
        alu(BPF_RSH, 16), // the low bits of a product depend on the low bits of its factors alone
        alu(BPF_MOD, relayed),
        alu(BPF_ADD, 1),
        op(BPF_RET | BPF_A, 0),
    ]);
    program
}

/// Brings a source's address and port into one word, A: [`word_of`] in the kernel.
fn source_word(factor: u32, ipv4: bool) -> Vec<libc::sock_filter> {
    const NETWORK: u32 = libc::SKF_NET_OFF as u32;
    let (port, address) = if ipv4 {
        let header_len = op(BPF_LDX | BPF_B | BPF_MSH, NETWORK); // into X
        (vec![header_len, load(BPF_H | BPF_IND, NETWORK)], vec![12])
    } else {
        (vec![load(BPF_H | BPF_ABS, NETWORK + 40)], vec![8, 12, 16, 20])
    };
    let mut program = port;
    for word in address {
        program.push(alu(BPF_MUL, factor));
        program.push(op(BPF_MISC | BPF_TAX, 0));
        program.push(load(BPF_W | BPF_ABS, NETWORK + word));
        program.push(op(BPF_ALU | BPF_XOR | BPF_X, 0));
        // What differs in the highest bits alone would differ so under every factor.
        program.push(op(BPF_MISC | BPF_TAX, 0));
        program.push(alu(BPF_RSH, 15));
        program.push(op(BPF_ALU | BPF_XOR | BPF_X, 0));
    }
    program
}

/// A source's address and port in one word.
fn word_of(source: SocketAddr, factor: u32) -> u32 {
    let mix = |word: u32, next: u32| {
        let mixed = word.wrapping_mul(factor) ^ next;
        mixed ^ mixed >> 15
    };
    let port = u32::from(source.port());
    match source.ip() {
        IpAddr::V4(address) => mix(port, address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [96, 64, 32, 0].into_iter().fold(port, |word, shift| mix(word, (bits >> shift) as u32))
        }
    }
}

const fn op(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

const fn load(size_and_mode: u32, k: u32) -> libc::sock_filter {
    op(libc::BPF_LD | size_and_mode, k)
}

const fn alu(operation: u32, k: u32) -> libc::sock_filter {
    op(BPF_ALU | operation | libc::BPF_K, k)
}

const fn jump(condition: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | condition | libc::BPF_K) as u16, jt, jf, k }
}

const fn give(socket: u32) -> libc::sock_filter {
    op(BPF_RET | libc::BPF_K, socket)
}
