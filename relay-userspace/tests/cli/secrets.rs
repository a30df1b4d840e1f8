//! What must not leave the key file, nor the messages that carry a session's keys.

use std::os::unix::fs::FileExt as _;
use std::process::Child;

use relay_common::Side;
use relay_userspace::identity::NodeKey;
use relay_userspace::protocol::bind::{BindKey, BindKeys};

use super::*;

#[test]
fn no_key_is_logged_however_much_is() {
    let relay = Node::relay();
    let port = free_port();
    let mut relaying = logging_all(&relay, &format!("net listen --port {port} --datapath userspace"));
    relay.until_it_answers("net peers");
    let [asking, asked] = [Node::with_identity(), Node::with_identity()];
    let relays = format!("[network]\nrelays = [\"127.0.0.1:{port}\"]\n[transport]\nenable_relay = true\n");
    asking.configure(&relays);
    asked.configure(&format!("{relays}[agent]\naccept = [\"{}\"]\n", asking.id()));
    let mut waiting = logging_all(&asked, "net listen");
    relay.until_logged("agent announced");
    let mut pinging = logging_all(&asking, &format!("net ping {} --count 2 --interval-ms 1", asked.id()));
    assert_eq!(wait(&mut pinging, Duration::from_secs(30)), Some(0));
    relay.until_logged("session ended");
    for daemon in [&mut waiting, &mut relaying] {
        terminate(daemon);
        assert_eq!(wait(daemon, Duration::from_secs(10)), Some(0));
    }

    let logs = [&relay, &asking, &asked].map(|node| fs::read_to_string(node.path("log")).unwrap());
    let [of_relay, ..] = &logs;
    let session = of_relay.split_once("session ended session=").unwrap().1[..32].parse().unwrap();
    let [connector, target] = [&asking, &asked].map(|node| node.id().parse().unwrap());
    let relays_key = NodeKey::load(Path::new(&relay.path("keys/node-key.pem"))).unwrap();
    let bind_keys = BindKeys::of_relay(&relays_key);
    let mut secrets: Vec<[u8; 32]> = [&relay, &asking, &asked].map(seed).into();
    secrets.extend(Side::BOTH.map(|side| *bind_keys.derive(session, side, &connector, &target).as_bytes()));
    for log in logs {
        assert!(log.contains("TRACE"), "all is logged");
        for (number, secret) in secrets.iter().enumerate() {
            for form in forms(secret) {
                assert!(!log.contains(&form), "the log has secret {number} as {form}");
            }
        }
    }
}

#[test]
fn a_secret_is_found_in_whatever_form_it_is_spelt() {
    let secret: [u8; 32] = std::array::from_fn(|at| (at as u8).wrapping_mul(37).wrapping_add(3));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("node-key.pem");
    NodeKey::from_seed(&secret).save_new(&file).unwrap();
    let spelt = [
        format!("{secret:?}"),
        format!("{secret:02x?}"),
        serde_json::to_string(&secret).unwrap(),
        fs::read_to_string(&file).unwrap(),
    ];
    for text in spelt {
        assert!(forms(&secret).iter().any(|form| text.contains(form)), "{text}");
    }
}

/// What is shown is that a value wipes its own memory. What a compiler copies when a value is moved is not looked at.
#[test]
fn a_key_is_wiped_when_it_is_dropped() {
    let secret: [u8; 32] = std::array::from_fn(|at| 0x80 + at as u8);
    let of_key = before_and_after_drop(NodeKey::from_seed(&secret));
    let of_bind_key = before_and_after_drop(BindKey::from_bytes(secret));
    for (before, after) in [of_key, of_bind_key] {
        let at = before.windows(32).position(|window| window == secret).expect("the key is in memory");
        assert_eq!(after[at..at + 32], [0; 32]);
    }
}

/// The memory of `value`, and what is left there when it has been dropped: a vector keeps the room it has. The kernel
/// reads it for us.
fn before_and_after_drop<T>(value: T) -> (Vec<u8>, Vec<u8>) {
    let memory = fs::File::open("/proc/self/mem").unwrap();
    let mut values = Vec::with_capacity(1);
    values.push(value);
    let at = values.as_ptr().addr() as u64;
    let [mut before, mut after] = [(); 2].map(|()| vec![0; size_of::<T>()]);
    memory.read_exact_at(&mut before, at).unwrap();
    values.clear();
    memory.read_exact_at(&mut after, at).unwrap();
    (before, after)
}

/// How a secret may be spelt.
fn forms(secret: &[u8; 32]) -> Vec<String> {
    let each = |spell: fn(&u8) -> String| -> Vec<String> { secret.iter().map(spell).collect() };
    let decimal = each(u8::to_string);
    let hexadecimal = each(|byte| format!("{byte:02x}"));
    let mut forms = vec![
        decimal.join(", "),
        decimal.join(","),
        hexadecimal.join(", "),
        hexadecimal.concat(),
        hexadecimal.concat().to_uppercase(),
        secret.escape_ascii().to_string(),
    ];
    // What comes before it in the same text shifts base64's digits.
    for before in 0..3 {
        let digits = base64(&[&vec![0; before][..], secret].concat());
        let whole = digits[(before * 8).div_ceil(6)..(before + secret.len()) * 8 / 6].to_owned();
        forms.push(whole.replace('+', "-").replace('/', "_"));
        forms.push(whole);
    }
    forms
}

/// The seed of a node's key.
fn seed(node: &Node) -> [u8; 32] {
    let pem = fs::read_to_string(node.path("keys/node-key.pem")).unwrap();
    // 16 bytes of PKCS#8 (RFC 8410 section 7) come before the seed.
    from_base64(pem.lines().nth(1).unwrap())[16..48].try_into().unwrap()
}

fn logging_all(node: &Node, words: &str) -> Child {
    let log = fs::File::create(node.path("log")).unwrap();
    let mut command = node.command();
    command.args(words.split_whitespace()).env("RUST_LOG", "trace").stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

/// RFC 4648 section 4.
const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Without padding.
fn base64(bytes: &[u8]) -> String {
    let bit = |at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
    let digit = |at: usize| (0..6).fold(0, |digit, more| digit << 1 | usize::from(bit(at * 6 + more)));
    (0..(bytes.len() * 8).div_ceil(6)).map(|at| char::from(BASE64[digit(at)])).collect()
}

fn from_base64(text: &str) -> Vec<u8> {
    let (mut bits, mut held, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        bits = bits << 6 | BASE64.iter().position(|letter| *letter == digit).unwrap() as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}
