//! The bind exchange: how an agent proves which data tuple is its own, and goes on proving it.
//!
//! ```text
//! agent's data socket                                   relay's port
//!   Bind(counter, cookie or zero)  ------------------>
//!                          <------------------  Challenge(counter, cookie)     unless the cookie is good for this tuple
//!   Proof(counter, cookie)         ------------------>
//!                          <------------------  Bound(counter, next cookie, reflexive address, half or paired)
//! ```
//!
//! Every datagram has [`BIND_LEN`](relay_common::BIND_LEN) bytes, so no answer is larger than its question:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic: derived from the relay's key, so that relay and packet path know bind datagrams from all others |
//! | 8 | 1 | version: 1 |
//! | 9 | 1 | kind: 1 Bind, 2 Challenge, 3 Proof, 4 Bound |
//! | 10 | 1 | side of the session: 0 connector, 1 target |
//! | 11 | 1 | in Bound: 0 half, 1 paired; else 0 |
//! | 12 | 4 | 0 |
//! | 16 | 16 | session id |
//! | 32 | 8 | counter, big-endian: the agent's clock in microseconds since the Unix epoch, strictly rising |
//! | 40 | 16 | cookie; 0 if there is none |
//! | 56 | 16 | in Bound: the agent's address as the relay sees it (IPv4 as `::ffff:a.b.c.d`); else 0 |
//! | 72 | 2 | in Bound: its port, big-endian; else 0 |
//! | 74 | 6 | 0 |
//! | 80 | 16 | MAC: HMAC-SHA256 under the side's bind key over bytes 0 to 79, the first 16 bytes |
//!
//! A Proof is good only for the one challenge of its side that is outstanding: it has come from the challenge's tuple, with
//! its counter and cookie, within 5 s. Until then a Bind from the same tuple is answered with the same challenge again, its
//! counter too, so that a path slower than the agent's retries still gets through; one from another tuple replaces it. No
//! challenge is good any more once its side has had anything accepted, or another session has proved the tuple since. A
//! Bound's cookie is good only for the first Bind after it. So what was collected at an address goes on consenting for it
//! once at most after it was left: with that one cookie, while the last consent lasts.
//!
//! The relay accepts a Bind or Proof only with a counter above the highest it has accepted from that side; others get no
//! answer. When the second side becomes bound, both flows are in place first; then that side hears Bound(paired), and so
//! does the other side, unasked, with its own highest counter.

mod client;
mod datagram;
mod path_health;
mod secrets;

pub use client::{BindClient, BindEvent, BindOutput};
pub use datagram::{BindDatagram, BindFault, BindKind, PairState, SessionId, SessionIdError, UnverifiedBind};
pub use path_health::PathHealth;
pub use secrets::{
    BindKey, BindKeys, BindMagic, COOKIE_PERIOD, Cookie, CookieCarrier, CookieSecrets, CookieSubject,
};
