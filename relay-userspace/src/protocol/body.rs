//! The body of a Message: any JSON value, kept as its text.

use std::fmt;
use std::io::{self, Write};

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::envelope::MAX_CONTROL_PAYLOAD_LEN;

/// Longest text of a body, in bytes: as long as the whole message may be.
pub const MAX_BODY_TEXT_LEN: usize = MAX_CONTROL_PAYLOAD_LEN;

/// The content of a Message: a JSON value as its text, without needless spaces.
///
/// On the wire it is MessagePack. What a peer sends goes straight from one to the other: a tree of it would take up to 200
/// times the bytes it came in, and text at most six times, of which no more is written than [`MAX_BODY_TEXT_LEN`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body(String);

/// The text would be too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body's JSON text is longer than {MAX_BODY_TEXT_LEN} bytes")]
pub struct BodyTooLong;

impl Body {
    /// The body that says `value`.
    ///
    /// # Errors
    /// Its text is too long.
    pub fn of(value: &impl Serialize) -> Result<Body, BodyTooLong> {
        let mut text = BoundedText::default();
        serde_json::to_writer(&mut text, value).map_err(|_| BodyTooLong)?;
        text.finish().ok_or(BodyTooLong)
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value, if it is of the form of `T`.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_str(&self.0).ok()
    }
}

impl Default for Body {
    /// Nothing: `null`.
    fn default() -> Self {
        Body("null".to_owned())
    }
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A tree of what is sent from here.
        let value: Value = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut text = BoundedText::default();
        Transcript { text: &mut text, lead: "" }.deserialize(deserializer)?;
        text.finish().ok_or_else(|| D::Error::custom(BodyTooLong))
    }
}

/// JSON that is being written.
#[derive(Default)]
struct BoundedText(Vec<u8>);

impl BoundedText {
    fn put<E: serde::de::Error>(&mut self, scalar: impl Serialize) -> Result<(), E> {
        serde_json::to_writer(self, &scalar).map_err(E::custom)
    }

    fn put_raw<E: serde::de::Error>(&mut self, text: &str) -> Result<(), E> {
        self.write_all(text.as_bytes()).map_err(E::custom)
    }

    fn finish(self) -> Option<Body> {
        String::from_utf8(self.0).ok().map(Body)
    }
}

impl Write for BoundedText {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.0.len() + more.len() > MAX_BODY_TEXT_LEN {
            return Err(io::Error::other(BodyTooLong));
        }
        self.0.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes down one value that is read, after `lead`.
struct Transcript<'a> {
    text: &'a mut BoundedText,
    lead: &'static str,
}

impl<'de> DeserializeSeed<'de> for Transcript<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.text.put_raw(self.lead)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Transcript<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.text.put(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.text.put(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.text.put(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.text.put(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.text.put(value)
    }

    /// JSON has no bytes: they become what byte fields are written as, an array of integers.
    fn visit_bytes<E: serde::de::Error>(self, value: &[u8]) -> Result<(), E> {
        self.text.put(value)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.text.put(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.text.put_raw("[")?;
        let mut lead = "";
        while seq.next_element_seed(Transcript { text: &mut *self.text, lead })?.is_some() {
            lead = ",";
        }
        self.text.put_raw("]")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.text.put_raw("{")?;
        let mut lead = "";
        // Its keys are texts in JSON: a map with others is refused.
        while let Some(key) = map.next_key::<String>()? {
            self.text.put_raw(lead)?;
            self.text.put(&key)?;
            map.next_value_seed(Transcript { text: &mut *self.text, lead: ":" })?;
            lead = ",";
        }
        self.text.put_raw("}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Body, rmp_serde::decode::Error> {
        rmp_serde::from_slice(bytes)
    }

    #[test]
    fn every_kind_of_value_becomes_its_json() {
        let values: [(&[u8], &str); 12] = [
            (b"\xc0", "null"),
            (b"\xc3", "true"),
            (b"\xff", "-1"),
            (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615"),
            (b"\xca\x3f\x80\0\0", "1.0"),
            (b"\xcb\x7f\xf8\0\0\0\0\0\0", "null"),
            (b"\xa3a\"\x1b", "\"a\\\"\\u001b\""),
            (b"\xc4\x02\x07\xff", "[7,255]"),
            (b"\x90", "[]"),
            (b"\x92\x01\x91\x80", "[1,[{}]]"),
            (b"\x82\xa1a\x01\xa1b\x92\xa0\xc2", "{\"a\":1,\"b\":[\"\",false]}"),
            (b"\xdc\x00\x01\xa1x", "[\"x\"]"),
        ];
        for (bytes, text) in values {
            assert_eq!(read(bytes).unwrap().as_str(), text, "{bytes:x?}");
        }
    }

    #[test]
    fn what_json_does_not_have_is_refused() {
        for bytes in [&b"\xd4\x01\x02"[..], b"\x81\x01\x02", b"\x81\xc0\xc0", b"\x92\x01"] {
            assert!(read(bytes).is_err(), "{bytes:x?}");
        }
    }

    #[test]
    fn no_more_text_is_written_than_fits() {
        // Each nil is one byte and, with its comma, five of text.
        let nils = |count: u16| [&[0xdc][..], &count.to_be_bytes(), &vec![0xc0; count.into()]].concat();
        let most = ((MAX_BODY_TEXT_LEN - 1) / 5) as u16;
        assert_eq!(read(&nils(most)).unwrap().as_str().len(), 5 * usize::from(most) + 1);
        let error = read(&nils(most + 1)).unwrap_err().to_string();
        assert!(error.contains(&BodyTooLong.to_string()), "{error}");
        assert_eq!(Body::of(&vec![(); usize::from(most) + 1]), Err(BodyTooLong));
    }

    #[test]
    fn a_body_is_read_in_the_form_that_is_expected_or_not_at_all() {
        let body = Body::of(&json!({ "to": "a:1", "more": [1] })).unwrap();
        assert_eq!(body.read::<std::collections::HashMap<String, Value>>().unwrap()["to"], "a:1");
        assert_eq!(body.read::<Vec<u8>>(), None);
    }

    proptest! {
        #[test]
        fn any_json_comes_back(text: String, number: i64, eighths: i32, some: Option<bool>) {
            let value = json!({ "": [text, number, { "x": f64::from(eighths) / 8.0 }, some], "k": {} });
            let body = Body::of(&value).unwrap();
            let back = read(&rmp_serde::to_vec_named(&body).unwrap()).unwrap();
            prop_assert_eq!(back.read::<Value>().unwrap(), value);
        }

        #[test]
        fn whatever_was_understood_can_be_said_again(bytes: Vec<u8>) {
            if let Ok(body) = read(&bytes) {
                prop_assert!(rmp_serde::to_vec_named(&body).is_ok(), "{}", body.as_str());
            }
        }
    }
}
