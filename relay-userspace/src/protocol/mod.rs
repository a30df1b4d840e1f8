//! What agents and relays say to each other: control messages over QUIC, and the bind datagrams.
//!
//! Pure except for [`frames`], which reads and writes streams it is given. Nothing here knows of sockets, clocks or
//! randomness, of the relay's or of the agent's side.
//!
//! Compatible with the upstream documentation's envelope, message types and handshake; what that leaves open, and what
//! is ours, stands in [`flow_terms`] and [`bind`] alone.

pub mod bind;
pub mod body;
pub mod byte_fields;
pub mod envelope;
pub mod error_code;
pub mod flow_terms;
pub mod frames;
pub mod handshake;
pub mod message;

pub use bind::SessionId;
pub use envelope::WireError;
pub use error_code::ErrorCode;
pub use message::Message;
