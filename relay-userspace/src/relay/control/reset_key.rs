//! The key of stateless resets: an agent whose relay was killed believes the successor that it has forgotten the connection.

use std::sync::Arc;
use std::time::Duration;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use quinn_proto::crypto::{CryptoError, HmacKey};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::identity::NodeKey;

/// Resets that may be sent, one in this time. A successor has one to send to each agent that its predecessor had, which
/// repeats itself until it has heard; each is smaller than what it answers.
pub const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// The reset key of the relay that has `key`: HKDF-SHA256 (RFC 5869) of the identity's seed without salt, with the info
/// `atlas relay stateless reset key v1`.
pub fn reset_key(key: &NodeKey) -> Arc<dyn HmacKey> {
    let mut derived = Zeroizing::new([0; 64]);
    let expanded = Hkdf::<Sha256>::new(None, key.seed()).expand(LABEL, derived.as_mut());
    debug_assert!(expanded.is_ok(), "HKDF-SHA256 gives up to 8160 bytes, this is 64");
    Arc::new(ResetKey(derived))
}

const LABEL: &[u8] = b"atlas relay stateless reset key v1";

struct ResetKey(Zeroizing<[u8; 64]>);

impl ResetKey {
    fn over(&self, data: &[u8]) -> Hmac<Sha256> {
        Hmac::new(&(*self.0).into()).chain_update(data)
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let signature = self.over(data).finalize().into_bytes();
        for (out, byte) in signature_out.iter_mut().zip(signature) {
            *out = byte;
        }
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        self.over(data).verify_slice(signature).map_err(|_| CryptoError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(seed: u8, data: &[u8]) -> [u8; 32] {
        let mut signature = [0; 32];
        reset_key(&NodeKey::from_seed(&[seed; 32])).sign(data, &mut signature);
        signature
    }

    #[test]
    fn a_successor_with_the_same_identity_and_nobody_else_makes_the_same_tokens() {
        let token = signed(1, b"connection id");
        assert_eq!(signed(1, b"connection id"), token);
        assert_ne!(signed(2, b"connection id"), token);
        assert_ne!(signed(1, b"another id"), token);
        let key = reset_key(&NodeKey::from_seed(&[1; 32]));
        assert!(key.verify(b"connection id", &token).is_ok());
        assert!(key.verify(b"another id", &token).is_err());
        assert!(key.verify(b"connection id", &token[..16]).is_err(), "a whole one");
    }
}
