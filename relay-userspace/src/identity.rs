//! Who a node is: its Ed25519 key, and the node id derived from it.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::file_owner::refusal_hint;
use crate::whole_file;

/// Of a key file: its owner's alone.
const KEY_MODE: u32 = 0o600;

/// A node's name on the wire: SHA-256 of its 32-byte Ed25519 public key.
///
/// Written as `atlas_` and 64 lower-case hexadecimal digits; nothing else is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// What every written node id begins with.
    pub const PREFIX: &'static str = "atlas_";

    /// The id whose hash is `bytes`.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        NodeId(bytes)
    }

    /// The 32 bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// For human eyes only: `atlas_`, the first 16 digits and `...`.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(Self::PREFIX.len() + 16);
        text.push_str("...");
        text
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let fault = || NodeIdError { text: text.chars().take(80).collect() };
        let digits = text.strip_prefix(Self::PREFIX).ok_or_else(fault)?.as_bytes();
        let mut id = [0; 32];
        let (pairs, rest) = digits.as_chunks::<2>();
        if pairs.len() != id.len() || !rest.is_empty() {
            return Err(fault());
        }
        for (byte, [high, low]) in id.iter_mut().zip(pairs) {
            let (Some(high), Some(low)) = (lower_hex_digit(*high), lower_hex_digit(*low)) else {
                return Err(fault());
            };
            *byte = high << 4 | low;
        }
        Ok(NodeId(id))
    }
}

impl serde::Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no node id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a node id: expected `atlas_` and 64 lower-case hexadecimal digits{}",
    whole_hint(text)
)]
pub struct NodeIdError {
    text: String,
}

/// Tables and messages shorten ids; those who copy one from there need to know where the whole is.
fn whole_hint(text: &str) -> &'static str {
    if text.starts_with(NodeId::PREFIX) { ": the full id (atlas-relay id show, or --json)" } else { "" }
}

/// An Ed25519 public key that somebody must hold the private key of.
///
/// Keys of low order are refused when a value is made: anyone can make signatures that verify under them, and the TLS
/// library accepts such a signature. A value holds the decoded point: decoding takes a tenth of what verifying does.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Length of an encoded key, in bytes.
    pub const LEN: usize = 32;

    /// Reads the 32 bytes of a key (RFC 8032, section 5.1.5).
    ///
    /// # Errors
    /// Another length, no point of the curve, or a point of low order.
    pub fn parse(bytes: &[u8]) -> Result<Self, PublicKeyError> {
        let key: &[u8; 32] = bytes.try_into().map_err(|_| PublicKeyError::Length(bytes.len()))?;
        let point = VerifyingKey::from_bytes(key).map_err(|_| PublicKeyError::NotOnCurve)?;
        if point.is_weak() { Err(PublicKeyError::Weak) } else { Ok(PublicKey(point)) }
    }

    /// The encoded key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The id of the node that holds this key.
    pub fn node_id(&self) -> NodeId {
        NodeId(Sha256::digest(self.as_bytes()).into())
    }

    /// Whether `signature` over `message` was made with the private key of this one, by the strict rules (canonical
    /// encodings, no low order): one message has one verdict everywhere.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        self.0.verify_strict(message, &signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey of {}", self.node_id())
    }
}

/// Bytes that are no usable public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// Not 32 bytes.
    #[error("an Ed25519 public key has 32 bytes, this has {0}")]
    Length(usize),
    /// Not the encoding of a point.
    #[error("the bytes are not an Ed25519 public key")]
    NotOnCurve,
    /// A point of low order: no private key is needed to sign for it.
    #[error("the public key is weak: anyone can sign for it")]
    Weak,
}

/// A node's private key. It is wiped from memory when dropped and never printed.
#[derive(Clone)]
pub struct NodeKey {
    signing: SigningKey,
}

/// All of it is the signing key, which wipes itself.
impl ZeroizeOnDrop for NodeKey {}

impl NodeKey {
    /// A new key from the operating system's randomness.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| IdentityError::NoRandomness)?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of an RFC 8032 seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        NodeKey { signing: SigningKey::from_bytes(seed) }
    }

    /// Reads a PKCS#8 PEM file (RFC 5958, with or without the public key in it).
    ///
    /// # Errors
    /// The file is missing, readable by others than its owner, or holds no Ed25519 private key.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let at = || path.to_owned();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => IdentityError::Missing { path: at() },
            _ => IdentityError::Io { doing: "read", path: at(), source },
        };
        let mut file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: at(), mode });
        }
        let mut pem = Zeroizing::new(String::new());
        io::Read::read_to_string(&mut file, &mut pem).map_err(failed)?;
        let signing = SigningKey::from_pkcs8_pem(&pem)
            .map_err(|fault| IdentityError::Malformed { path: at(), fault: fault.to_string() })?;
        Ok(NodeKey { signing })
    }

    /// Writes the key to a new file that only its owner may read: whole and on disk, or not at all.
    ///
    /// # Errors
    /// The file exists (a node's identity is never overwritten), or the directory cannot be written.
    pub fn save_new(&self, path: &Path) -> Result<(), IdentityError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => IdentityError::Exists { path: path.to_owned() },
            _ => IdentityError::Io { doing: "write", path: path.to_owned(), source },
        };
        self.with_draft(path, |draft| {
            // A hard link fails where the name is taken; a rename would replace it.
            fs::hard_link(draft, path)
        })
        .map_err(failed)
    }

    /// Puts this key in the place of the one at `path`, which is kept at `kept` from then on. At every moment one of both
    /// is at `path`, whole.
    ///
    /// # Errors
    /// There is something at `kept` already, or the directory cannot be written. Then nothing has changed.
    pub fn replace(&self, path: &Path, kept: &Path) -> Result<(), IdentityError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => IdentityError::KeptExists { path: kept.to_owned() },
            _ => IdentityError::Io { doing: "replace", path: path.to_owned(), source },
        };
        self.with_draft(path, |draft| {
            fs::hard_link(path, kept)?;
            fs::rename(draft, path).inspect_err(|_| {
                let _gone = fs::remove_file(kept);
            })
        })
        .map_err(failed)
    }

    /// Writes the key to a file beside `path`, lets `put` make use of it, and sees to it that the result is on disk.
    fn with_draft(&self, path: &Path, put: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let pem = self.signing.to_pkcs8_pem(LineEnding::LF).map_err(io::Error::other)?;
        whole_file::with_draft(path, KEY_MODE, pem.as_bytes(), put)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.signing.verifying_key())
    }

    /// The id of the node that holds this key.
    pub fn node_id(&self) -> NodeId {
        self.public().node_id()
    }

    /// The Ed25519 signature of `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }

    /// The seed, from which a relay also derives its bind keys.
    pub(crate) fn seed(&self) -> &[u8; 32] {
        self.signing.as_bytes()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey of {}", self.node_id())
    }
}

/// Why a node's key could not be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no key file.
    #[error("no identity: {} does not exist; create one with `atlas-relay id init`", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A key file is there already.
    #[error(
        "{} exists: the identity is kept. `atlas-relay id show` shows it; `atlas-relay id rotate` puts another in its place",
        path.display()
    )]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// There is a file where a replaced key was to be kept.
    #[error("{} exists: nothing was changed, for the old key would be kept there; move that file away first", path.display())]
    KeptExists {
        /// The file in the way.
        path: PathBuf,
    },
    /// Others than the owner may read the private key.
    #[error("{} has mode {mode:04o} and can be read by others: `chmod 600` it", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{} holds no Ed25519 private key in PKCS#8 PEM: {fault}", path.display())]
    Malformed {
        /// The key file.
        path: PathBuf,
        /// What the parser says.
        fault: String,
    },
    /// The file system said no.
    #[error("cannot {doing} the key file {}: {source}{}", path.display(), refusal_hint(path, source))]
    Io {
        /// `read`, `write` or `replace`.
        doing: &'static str,
        /// The key file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The random number generator failed.
    #[error("the operating system gives no random numbers")]
    NoRandomness,
}

fn lower_hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn node_id_is_the_hash_of_the_public_key_of_rfc_8032_test_1() {
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let seed: Vec<u8> =
            (0..32).map(|i| u8::from_str_radix(&seed[2 * i..2 * i + 2], 16).unwrap()).collect();
        let key = NodeKey::from_seed(&seed.try_into().unwrap());
        assert_eq!(
            key.node_id().to_string(),
            "atlas_21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"
        );
        assert_eq!(key.node_id().short(), "atlas_21fe31dfa154a261...");
    }

    #[test]
    fn node_id_text_is_read_strictly() {
        let text = "atlas_00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        assert_eq!(text.parse::<NodeId>().unwrap().to_string(), text);
        for wrong in [
            "",
            "atlas_",
            &text[..text.len() - 1],
            &format!("{text}0"),
            &text.to_uppercase(),
            &text.replace("aa", "AA"),
            &text.replace("atlas_", "node_"),
            &text.replace("ff", "+f"),
            &text.replace("ff", "é"),
        ] {
            assert!(wrong.parse::<NodeId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn weak_keys_are_refused() {
        // The eight points of low order in their canonical encodings that decode (RFC 8032, and the identity).
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut order_2 = [0xff; 32];
        order_2[0] = 0xec;
        order_2[31] = 0x7f;
        for weak in [identity, order_2, [0; 32]] {
            assert_eq!(PublicKey::parse(&weak), Err(PublicKeyError::Weak));
        }
        assert_eq!(PublicKey::parse(&[7; 31]), Err(PublicKeyError::Length(31)));
        assert_eq!(PublicKey::parse(&[2; 32]).err(), Some(PublicKeyError::NotOnCurve));
    }

    #[test]
    fn a_signature_verifies_under_its_key_and_message_only() {
        let (key, other) = (NodeKey::from_seed(&[1; 32]), NodeKey::from_seed(&[2; 32]));
        let signature = key.sign(b"challenge");
        assert!(key.public().verify(b"challenge", &signature));
        assert!(!key.public().verify(b"challenge!", &signature));
        assert!(!other.public().verify(b"challenge", &signature));
        assert!(!key.public().verify(b"challenge", &signature[..63]));
    }

    #[test]
    fn a_saved_key_loads_again_is_private_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node-key.pem");
        assert!(matches!(NodeKey::load(&path), Err(IdentityError::Missing { .. })));
        let key = NodeKey::generate().unwrap();
        key.save_new(&path).unwrap();
        assert_eq!(NodeKey::load(&path).unwrap().node_id(), key.node_id());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left behind");

        let other = NodeKey::generate().unwrap();
        assert!(matches!(other.save_new(&path), Err(IdentityError::Exists { .. })));
        assert_eq!(NodeKey::load(&path).unwrap().node_id(), key.node_id());
    }

    #[test]
    fn a_key_file_that_anybody_but_its_owner_can_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node-key.pem");
        NodeKey::generate().unwrap().save_new(&path).unwrap();
        for exposed in [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o644, 0o660, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(exposed)).unwrap();
            let error = NodeKey::load(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Exposed { mode, .. } if mode == exposed), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        for private in [0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(private)).unwrap();
            NodeKey::load(&path).unwrap();
        }
    }

    #[test]
    fn a_key_is_replaced_whole_and_the_old_one_kept_as_private_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let (path, kept) = (directory.path().join("node-key.pem"), directory.path().join("node-key.old.pem"));
        let [old, new, third] = std::array::from_fn(|_| NodeKey::generate().unwrap());
        assert!(new.replace(&path, &kept).is_err(), "there is nothing to replace");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");

        old.save_new(&path).unwrap();
        new.replace(&path, &kept).unwrap();
        let at = |path: &Path| NodeKey::load(path).unwrap().node_id();
        assert_eq!((at(&path), at(&kept)), (new.node_id(), old.node_id()), "loading also checks the modes");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no draft is left behind");

        let taken = third.replace(&path, &kept).unwrap_err();
        assert!(taken.to_string().contains("node-key.old.pem exists"), "{taken}");
        assert_eq!((at(&path), at(&kept)), (new.node_id(), old.node_id()), "nothing has changed");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn pkcs8_version_1_without_the_public_key_loads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v1.pem");
        // `openssl genpkey -algorithm ed25519` writes this form; the seed is RFC 8410's example.
        let pem = "-----BEGIN PRIVATE KEY-----\n\
                   MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                   -----END PRIVATE KEY-----\n";
        fs::write(&path, pem).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let key = NodeKey::load(&path).unwrap();
        assert_eq!(key.public().as_bytes()[..4], [0x19, 0xbf, 0x44, 0x09]);
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(NodeKey::load(&path), Err(IdentityError::Malformed { .. })));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let key = NodeKey::from_seed(&[0x5a; 32]);
        assert_eq!(format!("{key:?}"), format!("NodeKey of {}", key.node_id()));
    }
}
