//! Frames that are made unusual, so that the program passes them up.

use etherparse::Ipv4Header;

/// An IPv4 packet as two, the first with 1024 bytes behind its header.
pub fn in_fragments(frame: &[u8]) -> [Vec<u8>; 2] {
    let (headers, data) = frame.split_at(34);
    let part = |data: &[u8], flags_and_offset: u16| {
        let mut part = [headers, data].concat();
        part[16..18].copy_from_slice(&(20 + data.len() as u16).to_be_bytes());
        part[20..22].copy_from_slice(&flags_and_offset.to_be_bytes());
        set_ip_checksum(&mut part);
        part
    };
    [part(&data[..1024], 0x2000), part(&data[1024..], 1024 / 8)]
}

/// An IPv4 packet with a word of options that do nothing.
pub fn with_options(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[14] = 0x46;
    frame.splice(34..34, [1; 4]);
    let length = u16::from_be_bytes([frame[16], frame[17]]) + 4;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    set_ip_checksum(&mut frame);
    frame
}

/// An IPv6 packet with an extension header of this kind, whose eight bytes follow the kind.
pub fn with_extension(frame: &[u8], [kind, header @ ..]: [u8; 9]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[20] = kind;
    frame.splice(54..54, header);
    let length = u16::from_be_bytes([frame[18], frame[19]]) + 8;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame
}

pub fn without_checksum(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[40..42].fill(0);
    frame
}

pub fn set_ip_checksum(frame: &mut [u8]) {
    let (header, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}
