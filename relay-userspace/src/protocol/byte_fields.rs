//! Byte fields of messages.
//!
//! The documentation does not say whether bytes are MessagePack `bin` or arrays of integers. Arrays are written, because
//! every version of the library it names reads them; both are read.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of any length.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Bytes(pub Vec<u8>);

/// Exactly `N` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteArray<const N: usize>(pub [u8; N]);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<const N: usize> Serialize for ByteArray<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EitherForm).map(Bytes)
    }
}

impl<'de, const N: usize> Deserialize<'de> for ByteArray<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = deserializer.deserialize_any(EitherForm)?;
        let len = bytes.len();
        bytes
            .try_into()
            .map(ByteArray)
            .map_err(|_| D::Error::invalid_length(len, &format!("{N} bytes").as_str()))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl<const N: usize> fmt::Debug for ByteArray<N> {
    // Lengths only: some byte fields are keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{N} bytes>")
    }
}

struct EitherForm;

impl<'de> Visitor<'de> for EitherForm {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes, or an array of integers below 256")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
        // Grown as elements arrive: the announced length is the peer's word.
        let mut bytes = Vec::new();
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_an_array_and_read_in_both_forms() {
        let value = ByteArray([1, 200, 3]);
        assert_eq!(rmp_serde::to_vec(&value).unwrap(), [0x93, 1, 0xcc, 200, 3]);
        for form in [&[0x93, 1, 0xcc, 200, 3][..], &[0xc4, 3, 1, 200, 3]] {
            assert_eq!(rmp_serde::from_slice::<ByteArray<3>>(form).unwrap(), value);
            assert_eq!(rmp_serde::from_slice::<Bytes>(form).unwrap(), Bytes(vec![1, 200, 3]));
        }
    }

    #[test]
    fn another_length_or_a_number_above_255_is_refused() {
        for wrong in
            [&[0x92, 1, 2][..], &[0x94, 1, 2, 3, 4], &[0xc4, 2, 1, 2], &[0x93, 1, 2, 0xcd, 1, 0], &[0xa1, 65]]
        {
            assert!(rmp_serde::from_slice::<ByteArray<3>>(wrong).is_err(), "{wrong:x?}");
        }
    }
}
