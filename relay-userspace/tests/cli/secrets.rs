//! What must not leave the key file.

use std::process::Child;

use super::*;

#[test]
fn no_key_is_logged_however_much_is() {
    let relay = Node::relay();
    let port = free_port();
    let mut relaying = logging_all(&relay, &format!("net listen --port {port} --datapath userspace"));
    relay.until_it_answers("net peers");
    let agent = Node::with_identity();
    agent.configure(&format!(
        "[network]\nrelays = [\"127.0.0.1:{port}\"]\n[transport]\nenable_relay = true\n"
    ));
    let mut connected = logging_all(&agent, "net listen");
    relay.until_logged("agent announced");
    agent.run(&format!("net ping {OTHER} --count 1"));
    for daemon in [&mut connected, &mut relaying] {
        terminate(daemon);
        assert_eq!(wait(daemon, Duration::from_secs(5)), Some(0));
    }

    for node in [&relay, &agent] {
        let log = fs::read_to_string(node.path("log")).unwrap();
        assert!(log.contains("TRACE"), "all is logged");
        let pem = fs::read_to_string(node.path("keys/node-key.pem")).unwrap();
        let encoded = pem.lines().nth(1).unwrap();
        // 16 bytes of PKCS#8 (RFC 8410 section 7) come before the seed.
        let seed = &from_base64(encoded)[16..48];
        let hexadecimal: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        let numbers: Vec<String> = seed.iter().map(u8::to_string).collect();
        let spelt = [encoded[..43].to_owned(), hexadecimal.to_uppercase(), hexadecimal, numbers.join(", ")];
        for form in spelt {
            assert!(!log.contains(&form), "the log has the key as {form}");
        }
    }
}

fn logging_all(node: &Node, words: &str) -> Child {
    let log = fs::File::create(node.path("log")).unwrap();
    let mut command = node.command();
    command.args(words.split_whitespace()).env("RUST_LOG", "trace").stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

/// RFC 4648 section 4.
fn from_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        bits = bits << 6 | ALPHABET.iter().position(|letter| *letter == digit).unwrap() as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}
