//! Which socket of the group a datagram comes to: pure.
//!
//! The kernel drops what does not fit into a socket's queue before userspace sees it. Control has a socket of its own so
//! that a flood of relayed datagrams cannot fill the queue that control waits in.

use libc::{
    BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JGE, BPF_LDX, BPF_LEN,
    BPF_MISC, BPF_MOD, BPF_MSH, BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_W, BPF_X, BPF_XOR,
};
use relay_common::BIND_MAGIC_LEN;

/// What tells our control datagrams from relayed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// What every bind datagram begins with; the two highest bits of the first byte are clear.
    pub bind_magic: [u8; BIND_MAGIC_LEN],
    /// What every connection id of ours begins with.
    pub connection_tag: [u8; 2],
}

impl Marks {
    /// The classic BPF program that chooses among the sockets of the group: 0 for QUIC long headers, for short headers
    /// with our connection ids and for bind datagrams; 1 + hash(source) % `relayed` for the rest. `relayed` is at least
    /// 1. Which bytes hold the source depends on the family.
    ///
    /// The program is given the UDP payload; the IP header is reached below it. Reading past the end ends it with 0.
    pub fn program(&self, relayed: u32, ipv4: bool) -> Vec<libc::sock_filter> {
        let [a, b, c, d, e, f, g, h] = self.bind_magic;
        let first = u32::from_be_bytes([a, b, c, d]);
        let second = u32::from_be_bytes([e, f, g, h]);
        let tag = u32::from(u16::from_be_bytes(self.connection_tag));
        let mut program = vec![
            load(BPF_W | BPF_LEN, 0),                    // 0: shorter than any datagram of ours?
            jump(BPF_JGE, BIND_MAGIC_LEN as u32, 0, 11), // 1: to HASH
            load(BPF_B | BPF_ABS, 0),                    // 2
            alu(BPF_AND, LONG_HEADER_AND_FIXED),         // 3
            jump(BPF_JEQ, LONG_HEADER_AND_FIXED, 7, 0),  // 4: to CONTROL
            jump(BPF_JEQ, u32::from(FIXED_BIT), 0, 2),   // 5: else to MAGIC
            load(BPF_H | BPF_ABS, 1),                    // 6: a short header: is the connection id ours?
            jump(BPF_JEQ, tag, 4, 5),                    // 7: to CONTROL, else to HASH
            load(BPF_W | BPF_ABS, 0),                    // 8: MAGIC
            jump(BPF_JEQ, first, 0, 3),                  // 9: else to HASH
            load(BPF_W | BPF_ABS, 4),                    // 10
            jump(BPF_JEQ, second, 0, 1),                 // 11: else to HASH
            give(0),                                     // 12: CONTROL
        ];
        program.extend(hash_source(relayed.max(1), ipv4)); // 13: HASH
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

/// Ends with 1 + hash(source address, source port) % `relayed`: one source's datagrams always come to one reader, so
/// they keep their order. An attacker who chooses sources can fill one reader's queue; it could fill all of them.
fn hash_source(relayed: u32, ipv4: bool) -> Vec<libc::sock_filter> {
    const NETWORK: u32 = libc::SKF_NET_OFF as u32;
    const ODD: u32 = 0x9e37_79b1; // 2^32 / golden ratio, Knuth 6.4
    if relayed == 1 {
        return vec![give(1)];
    }
    let mut program = Vec::new();
    if ipv4 {
        program.push(op(BPF_LDX | BPF_B | BPF_MSH, NETWORK)); // X = header length
        program.push(load(BPF_H | BPF_IND, NETWORK)); // A = source port
        program.push(alu(BPF_MUL, ODD));
        program.push(op(BPF_MISC | BPF_TAX, 0));
        program.push(load(BPF_W | BPF_ABS, NETWORK + 12));
        program.push(op(BPF_ALU | BPF_XOR | BPF_X, 0));
    } else {
        program.push(load(BPF_H | BPF_ABS, NETWORK + 40));
        for word in 0..4 {
            program.push(alu(BPF_MUL, ODD));
            program.push(op(BPF_MISC | BPF_TAX, 0));
            program.push(load(BPF_W | BPF_ABS, NETWORK + 8 + 4 * word));
            program.push(op(BPF_ALU | BPF_XOR | BPF_X, 0));
        }
    }
    program.extend([
        alu(BPF_MUL, ODD),
        alu(BPF_RSH, 16), // the low bits of a product depend on the low bits of its factors alone
        alu(BPF_MOD, relayed),
        alu(BPF_ADD, 1),
        op(BPF_RET | BPF_A, 0),
    ]);
    program
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
