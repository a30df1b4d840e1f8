//! `explain`: asks the running relay what would become of a packet.

use relay_userspace::admin::{self, AskedPacket, Request};
use relay_userspace::relay::explanation::{
    Bucket, Checksums, Decision, Explanation, Leaving, NextHop, Packet, Session,
};

use crate::{args, node, output, packet_file};

pub fn run(options: &args::Explain) -> anyhow::Result<()> {
    let packet = match &options.packet {
        Some(path) => AskedPacket::Frame(packet_file::read(path)?),
        None => AskedPacket::PayloadBytes(options.payload),
    };
    let request = Request::Explain { source: options.source, destination: options.destination, packet };
    let answer = admin::ask(&node::admin_socket()?, request)?;
    if options.format.json {
        return output::json(&answer);
    }
    let explanation: Explanation = serde_json::from_value(answer)?;
    lines(&explanation).into_iter().for_each(output::line);
    Ok(())
}

fn lines(explanation: &Explanation) -> Vec<String> {
    let Explanation { datapath, packet, not_listening, .. } = explanation;
    let Explanation { program, forwarder, leaves, session, next_hop, bucket, .. } = explanation;
    let mut lines = vec![format!("Packet    : {}", arriving(packet))];
    lines.extend(not_listening.as_ref().map(|why| format!("Relay     : does not listen there: {why}")));
    if let Some(decision) = program {
        lines.push(format!("Program   : {}", decided(decision)));
    }
    match (forwarder, program) {
        (Some(decision), _) => lines.push(format!("Forwarder : {}", decided(decision))),
        (None, None) => {
            lines.push("Forwarder : no whole UDP packet: the kernel's stack sees to it".to_owned())
        }
        (None, Some(program)) if program.action == "pass" => {
            lines.push(format!("Forwarder : {}", not_as_it_is(&program.reason)));
        }
        (None, Some(_)) => {}
    }
    lines.push(format!("Leaves    : {}", leaves.as_ref().map_or_else(|| "no".to_owned(), leaving)));
    match session {
        None => lines.push("Session   : none has this source and destination".to_owned()),
        Some(session) => lines.extend(of_session(session)),
    }
    lines.extend(next_hop.as_ref().map(|hop| format!("Next hop  : {}", of_hop(hop))));
    if session.is_some() {
        let bucket = bucket.as_ref().map_or_else(|| "no limit".to_owned(), of_bucket);
        lines.push(format!("Bucket    : {bucket}"));
    }
    lines.push(format!("Datapath  : {datapath}"));
    lines
}

fn arriving(packet: &Packet) -> String {
    let Packet { source, destination, frame_bytes, payload_bytes, ttl, vlan, interface, .. } = packet;
    let mut text = format!("{source} > {destination}, ");
    match (payload_bytes, ttl) {
        (Some(payload), Some(ttl)) => text.push_str(&format!("{payload} bytes of UDP payload, TTL {ttl}")),
        _ => text.push_str(&format!("a frame of {frame_bytes} bytes without a whole UDP packet")),
    }
    text.extend(vlan.map(|vlan| format!(", VLAN {vlan}")));
    text.extend(interface.as_ref().map(|interface| format!(", by {interface}")));
    text
}

fn decided(Decision { reason, text, action }: &Decision) -> String {
    format!("{action}: {reason}: {text}")
}

/// What becomes of a packet that the program passes up and the forwarder does not get as it is.
fn not_as_it_is(reason: &str) -> &'static str {
    match reason {
        "fragment" => "gets the whole packet once the kernel has all fragments, and decides on that",
        "super_frame" => "gets the datagrams that were merged one by one, and decides on each",
        _ => "does not get it: the kernel's stack sees to it",
    }
}

fn leaving(leaving: &Leaving) -> String {
    let Leaving { source, destination, ttl, tos, checksums, station, to_station, vlan } = leaving;
    let mut text = format!("{source} > {destination}, TTL {ttl}, TOS 0x{tos:02x}");
    match checksums {
        Some(Checksums { ip, udp, right }) => {
            text.extend(ip.as_ref().map(|ip| format!(", IP checksum 0x{ip}")));
            let verdict = if *right { "right" } else { "WRONG, as in the packet that came" };
            text.push_str(&format!(", UDP checksum 0x{udp}, {verdict}"));
        }
        None => text.push_str(", sent by the daemon: the kernel makes checksums and Ethernet header"),
    }
    let stations = station.as_ref().zip(to_station.as_ref());
    text.extend(stations.map(|(from, to)| format!(", {from} > {to}")));
    text.extend(vlan.map(|vlan| format!(", VLAN {vlan}")));
    text
}

fn of_session(Session { session, sender, previous_tuple, sides }: &Session) -> Vec<String> {
    let mut first = format!("Session   : {}, sent by its {sender}", or_dash(session.as_deref()));
    if *previous_tuple {
        first.push_str(
            ", which has just moved away from this tuple: what was on its way is still relayed for 5 s",
        );
    }
    let side = |name: &str, side: &relay_userspace::relay::explanation::SessionSide| {
        let consent = match side.consent_left_ms {
            0 => "consent has expired".to_owned(),
            left => format!("consent for {}.{} s", left / 1000, left % 1000 / 100),
        };
        let (node, agent, relay) = (&side.node_id, &side.agent, &side.relay);
        let [node, agent, relay] = [node, agent, relay].map(|text| or_dash(text.as_deref()).to_owned());
        format!("{name} : {node} at {agent}, by {relay}; {consent}")
    };
    let [connector, target] = sides;
    vec![first, side("Connector", connector), side("Target   ", target)]
}

fn of_hop(hop: &NextHop) -> String {
    let NextHop { number, egress, interface, mtu, vlan, to_station, gateway, neighbour, confirmed_s } = hop;
    let mut text = format!("{number}: {}", or_dash(gateway.as_deref()));
    text.extend(interface.as_ref().map(|interface| format!(" by {interface}")));
    match (egress.as_str(), mtu) {
        ("userspace", _) | (_, None) => text.push_str(", unresolved: left to userspace"),
        (egress, Some(mtu)) => text.push_str(&format!(", {egress}, MTU {mtu}")),
    }
    text.extend(vlan.map(|vlan| format!(", VLAN {vlan}")));
    text.extend(to_station.as_ref().map(|station| format!(", {station}")));
    match (neighbour, confirmed_s) {
        (Some(state), Some(ago)) => {
            text.push_str(&format!(", {state}, heard of {} ago", output::seconds(*ago)))
        }
        (Some(state), None) => text.push_str(&format!(", {state}")),
        (None, _) => text.push_str(", not in the kernel's neighbour table"),
    }
    text
}

fn of_bucket(bucket: &Bucket) -> String {
    let Bucket { rate_bytes_per_s, burst_bytes, left_bytes, left_for_large_bytes } = bucket;
    format!(
        "{left_bytes} of a burst of {burst_bytes} bytes left, {left_for_large_bytes} for packets over 256 bytes; \
         {rate_bytes_per_s} bytes/s"
    )
}

fn or_dash(text: Option<&str>) -> &str {
    text.unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(explanation: serde_json::Value) -> String {
        lines(&serde_json::from_value(explanation).unwrap()).join("\n")
    }

    fn explanation() -> serde_json::Value {
        json!({
            "datapath": "xdp-native",
            "packet": {
                "source": "192.0.2.1:40001", "destination": "192.0.2.2:4433", "frame_bytes": 1242,
                "payload_bytes": 1200, "ttl": 64, "tos": 0, "vlan": null, "interface": "eth0"
            },
            "program": { "reason": "forwarded", "text": "Rewritten.", "action": "forward" },
            "forwarder": null,
            "leaves": {
                "source": "192.0.2.2:4433", "destination": "198.51.100.7:51515", "ttl": 63, "tos": 0,
                "checksums": { "ip": "0a1b", "udp": "2c3d", "right": true },
                "station": "02:00:00:00:00:01", "to_station": "02:00:00:00:00:fe", "vlan": null
            },
            "session": {
                "session": "0f1e2d3c4b5a69788796a5b4c3d2e1f0", "sender": "connector", "previous_tuple": false,
                "sides": [
                    { "node_id": "atlas_1", "agent": "192.0.2.1:40001", "relay": "192.0.2.2:4433", "consent_left_ms": 71_250 },
                    { "node_id": "atlas_2", "agent": "198.51.100.7:51515", "relay": "192.0.2.2:4433", "consent_left_ms": 0 }
                ]
            },
            "next_hop": {
                "number": 3, "egress": "transmit", "interface": "eth0", "mtu": 1500, "vlan": null,
                "to_station": "02:00:00:00:00:fe", "gateway": "192.0.2.254", "neighbour": "reachable", "confirmed_s": 4
            },
            "bucket": {
                "rate_bytes_per_s": 1_048_576, "burst_bytes": 262_144, "left_bytes": 262_144,
                "left_for_large_bytes": 229_376
            }
        })
    }

    #[test]
    fn everything_that_is_known_is_said() {
        let said = said(explanation());
        for part in [
            "192.0.2.1:40001 > 192.0.2.2:4433, 1200 bytes of UDP payload, TTL 64, by eth0",
            "Program   : forward: forwarded: Rewritten.",
            "192.0.2.2:4433 > 198.51.100.7:51515, TTL 63, TOS 0x00, IP checksum 0x0a1b, UDP checksum 0x2c3d, right",
            "0f1e2d3c4b5a69788796a5b4c3d2e1f0, sent by its connector",
            "atlas_1 at 192.0.2.1:40001, by 192.0.2.2:4433; consent for 71.2 s",
            "atlas_2 at 198.51.100.7:51515, by 192.0.2.2:4433; consent has expired",
            "3: 192.0.2.254 by eth0, transmit, MTU 1500, 02:00:00:00:00:fe, reachable, heard of 4 s ago",
            "262144 of a burst of 262144 bytes left, 229376 for packets over 256 bytes; 1048576 bytes/s",
        ] {
            assert!(said.contains(part), "{part:?} is missing: {said}");
        }
        assert!(!said.contains("Forwarder"), "{said}");
    }

    #[test]
    fn a_destination_that_is_not_the_relays_is_said_to_be_none() {
        let mut elsewhere = explanation();
        assert!(!said(elsewhere.clone()).contains("does not listen"));
        elsewhere["not_listening"] = "its port is 4433".into();
        assert!(said(elsewhere).contains("\nRelay     : does not listen there: its port is 4433\n"));
    }

    #[test]
    fn a_packet_of_nobody_and_one_that_comes_in_parts_are_explained() {
        let mut nobodys = explanation();
        for key in ["leaves", "session", "next_hop", "bucket"] {
            nobodys[key] = serde_json::Value::Null;
        }
        nobodys["program"] = json!({ "reason": "no_flow", "text": "No session.", "action": "pass" });
        nobodys["forwarder"] = nobodys["program"].clone();
        let said_of = said(nobodys.clone());
        assert!(said_of.contains("Session   : none has this source and destination"), "{said_of}");
        assert!(said_of.contains("Forwarder : pass: no_flow: No session."), "{said_of}");
        nobodys["forwarder"] = serde_json::Value::Null;
        nobodys["program"]["reason"] = "fragment".into();
        assert!(said(nobodys).contains("once the kernel has all fragments"));
    }
}
