//! The connection ids by which the kernel tells the relay's own QUIC connections from relayed ones.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator};

use super::steering::TAG_LEN;

/// Makes connection ids: the tag, then 64 bits of SipHash of a counter under a random key, so that an observer cannot
/// tell which ids are one connection's (RFC 9000 section 5.1).
#[derive(Clone, Debug)]
pub struct ConnectionIds {
    tag: [u8; TAG_LEN],
    key: RandomState,
    made: u64,
}

impl ConnectionIds {
    /// Ids that begin with `tag`.
    pub fn tagged(tag: [u8; TAG_LEN]) -> ConnectionIds {
        ConnectionIds { tag, key: RandomState::new(), made: 0 }
    }
}

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.made += 1;
        let [t, u, v, w] = self.tag;
        let [a, b, c, d, e, f, g, h] = self.key.hash_one(self.made).to_ne_bytes();
        ConnectionId::new(&[t, u, v, w, a, b, c, d, e, f, g, h])
    }

    /// Ids without the tag are never answered with a stateless reset.
    fn validate(&self, id: &ConnectionId) -> Result<(), quinn_proto::InvalidCid> {
        if id.starts_with(&self.tag) { Ok(()) } else { Err(quinn_proto::InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        TAG_LEN + 8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
