//! A packet in a file: a capture's first, hexadecimal text, or the frame's bytes as they are.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use relay_userspace::admin::bytes_of_digits;
use relay_userspace::relay::datapath::MAX_FRAME;

/// As much of a file is read: a frame as text, with offsets and spaces.
const MAX_FILE: u64 = 8 * MAX_FRAME as u64;

/// The frame in the file at `path`.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    read.with_context(|| format!("reading {}", path.display()))?;
    let frame = frame(&bytes).with_context(|| format!("{}", path.display()))?;
    if !(14..=MAX_FRAME).contains(&frame.len()) {
        bail!(
            "{}: a frame of {} bytes: expected one of 14 to {MAX_FRAME} bytes, with its Ethernet header",
            path.display(),
            frame.len()
        );
    }
    Ok(frame)
}

fn frame(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    match bytes.first_chunk::<4>() {
        Some([0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]) => {
            first_of_capture(bytes, u32::from_be_bytes)
        }
        Some([0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]) => {
            first_of_capture(bytes, u32::from_le_bytes)
        }
        Some([0x0a, 0x0d, 0x0d, 0x0a]) => {
            bail!("a capture in pcapng form: save it as pcap (`tcpdump -w FILE`, `editcap -F pcap IN FILE`)")
        }
        _ => Ok(std::str::from_utf8(bytes).ok().and_then(of_text).unwrap_or_else(|| bytes.to_vec())),
    }
}

/// The first packet of a capture (pcap-savefile(5)): a header of 24 bytes, the packet's of 16, its bytes.
fn first_of_capture(bytes: &[u8], word: fn([u8; 4]) -> u32) -> anyhow::Result<Vec<u8>> {
    const ETHERNET: u32 = 1;
    let at = |offset: usize| bytes.get(offset..)?.first_chunk().map(|bytes| word(*bytes));
    let link = at(20).context("a capture without its header")?;
    if link & 0xffff != ETHERNET {
        bail!(
            "a capture of link type {}: expected Ethernet frames (1): capture on one interface, not on `any`",
            link & 0xffff
        );
    }
    let (taken, length) = at(32).zip(at(36)).context("a capture without a packet")?;
    if taken != length {
        bail!("only {taken} of the first packet's {length} bytes were captured: capture with `tcpdump -s 0`");
    }
    let end = 40usize.saturating_add(usize::try_from(taken)?);
    Ok(bytes.get(40..end).context("the first packet is cut off, or longer than any frame")?.to_vec())
}

/// Bytes in hexadecimal digits: with or without spaces or colons between them, and with offsets as `tcpdump -xx` writes them.
fn of_text(text: &str) -> Option<Vec<u8>> {
    let mut digits = String::new();
    for line in text.lines() {
        let line = line.trim();
        let bytes = match line.strip_prefix("0x").and_then(|line| line.split_once(':')) {
            Some((_offset, bytes)) => bytes,
            None => line,
        };
        digits.extend(bytes.chars().filter(|c| !c.is_whitespace() && *c != ':'));
    }
    bytes_of_digits(&digits).filter(|bytes| !bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Vec<u8> {
        (0..60).collect()
    }

    /// A capture's header, and its one packet's.
    fn capture(magic: u32, word: fn(u32) -> [u8; 4], link: u32, taken: u32, length: u32) -> Vec<u8> {
        let words = [magic, 2 | 4 << 16, 0, 0, 65_535, link, 1, 2, taken, length];
        words.into_iter().flat_map(word).chain(packet()).collect()
    }

    #[test]
    fn a_frame_is_read_in_every_form() {
        let digits: String = packet().iter().map(|byte| format!("{byte:02x}")).collect();
        let spaced: String = packet().iter().map(|byte| format!("{byte:02X} ")).collect();
        let colons = packet().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
        let dumped: String = packet()
            .chunks(16)
            .enumerate()
            .map(|(line, bytes)| {
                let pairs: Vec<String> =
                    bytes.chunks(2).map(|pair| format!("{:02x}{:02x}", pair[0], pair[1])).collect();
                format!("\t0x{:04x}:  {}\n", line * 16, pairs.join(" "))
            })
            .collect();
        for text in [&digits, &spaced, &colons, &dumped, &format!("{digits}\n")] {
            assert_eq!(frame(text.as_bytes()).unwrap(), packet(), "{text}");
        }
        for (magic, word) in [
            (0xa1b2_c3d4, u32::to_be_bytes as fn(u32) -> [u8; 4]),
            (0xa1b2_c3d4, u32::to_le_bytes),
            (0xa1b2_3c4d, u32::to_le_bytes),
        ] {
            assert_eq!(frame(&capture(magic, word, 1, 60, 60)).unwrap(), packet());
        }
        assert_eq!(frame(&packet()).unwrap(), packet(), "as it is");
    }

    #[test]
    fn a_capture_that_has_no_whole_ethernet_frame_says_how_to_make_one() {
        let fault = |bytes: &[u8]| format!("{:#}", frame(bytes).unwrap_err());
        let le = u32::to_le_bytes;
        assert!(fault(&capture(0xa1b2_c3d4, le, 276, 60, 60)).contains("not on `any`"));
        assert!(fault(&capture(0xa1b2_c3d4, le, 1, 60, 1500)).contains("tcpdump -s 0"));
        assert!(fault(&capture(0xa1b2_c3d4, le, 1, u32::MAX, u32::MAX)).contains("longer than any frame"));
        let whole = capture(0xa1b2_c3d4, le, 1, 60, 60);
        for end in [4, 20, 24, 39, 99] {
            assert!(!fault(&whole[..end]).is_empty());
        }
        assert!(fault(&[0x0a, 0x0d, 0x0d, 0x0a, 0]).contains("pcapng"));
    }
}
