//! The accounting line: what is written of each session and offer at its end, in a form that programs may rely on.

use std::time::Duration;

use super::datapath::Traffic;
use super::rendezvous::EndReason;
use crate::identity::NodeId;
use crate::protocol::SessionId;

/// A session or offer that is over; docs/accounting.md says what its line promises.
#[derive(Clone, Debug)]
pub struct Account<'a> {
    /// Which.
    pub session: SessionId,
    /// Who asked.
    pub connector: NodeId,
    /// Who was asked for.
    pub target: NodeId,
    /// Why it is over.
    pub reason: EndReason,
    /// How old it was.
    pub age: Duration,
    /// What it carried.
    pub traffic: &'a Traffic,
}

impl Account<'_> {
    /// Writes the line.
    pub fn log(&self) {
        let Account { session, connector, target, reason, age, traffic } = self;
        let [from_connector, from_target] = &traffic.sides;
        let kernel = from_connector.packets_kernel + from_target.packets_kernel;
        let path = match (kernel, traffic.packets() - kernel) {
            (0, 0) if traffic.bytes() > 0 => "streams",
            (0, 0) => "none",
            (_, 0) => "kernel",
            (0, _) => "userspace",
            _ => "both",
        };
        // In this order: docs/accounting.md.
        tracing::info!(
            target: "accounting",
            %session,
            %connector,
            %target,
            reason = %reason.word(),
            duration_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            connector_packets = from_connector.packets(),
            connector_bytes = from_connector.bytes,
            target_packets = from_target.packets(),
            target_bytes = from_target.bytes,
            %path,
            kernel_packets = kernel,
            limited_packets = traffic.limited_packets,
            limited_bytes = traffic.limited_bytes,
            marked_packets = traffic.marked_packets,
            "session ended"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use relay_common::Side;

    use super::*;
    use crate::relay::datapath::SideTraffic;
    use crate::relay::written::Written;

    const TRAFFIC: Traffic = Traffic {
        sides: [
            SideTraffic { packets_kernel: 4090, packets_userspace: 6, bytes: 4_915_200 },
            SideTraffic { packets_kernel: 2048, packets_userspace: 0, bytes: 131_072 },
        ],
        limited_packets: 12,
        limited_bytes: 14_400,
        marked_packets: 31,
    };

    fn line(reason: EndReason, traffic: &Traffic) -> String {
        let account = Account {
            session: SessionId([0x5a; 16]),
            connector: NodeId::from_bytes([1; 32]),
            target: NodeId::from_bytes([2; 32]),
            reason,
            age: Duration::from_micros(83_412_900),
            traffic,
        };
        let written = Written::default();
        let to = written.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || to.clone())
            .with_ansi(false)
            .without_time()
            .with_level(false)
            .with_target(false)
            .finish();
        tracing::subscriber::with_default(log, || account.log());
        written.text().strip_suffix('\n').unwrap().to_owned()
    }

    fn document() -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/accounting.md");
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn the_line_of_a_session_is_the_one_in_the_document_to_the_byte() {
        let document = document();
        let shown = document.lines().find(|line| line.starts_with("session ended ")).unwrap();
        assert_eq!(line(EndReason::ConsentLost(Side::Target), &TRAFFIC), shown);
    }

    #[test]
    fn the_document_explains_every_field_and_every_reason_in_their_order() {
        let document = document();
        let explained = |heading: &str| -> Vec<String> {
            let section = document.split_once(heading).unwrap().1.split("\n## ").next().unwrap();
            let rows = section.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next());
            rows.map(str::to_owned).collect()
        };
        let line = line(EndReason::Idle, &TRAFFIC);
        let fields: Vec<&str> = line.split(' ').filter_map(|word| Some(word.split_once('=')?.0)).collect();
        assert_eq!(explained("## Fields"), fields);
        assert_eq!(explained("## Reasons"), EndReason::ALL.map(EndReason::word));
    }

    #[test]
    fn the_path_is_where_the_packets_were_forwarded() {
        let only = |packets_kernel, packets_userspace| Traffic {
            sides: [
                SideTraffic { packets_kernel, packets_userspace, bytes: packets_kernel + packets_userspace },
                SideTraffic::default(),
            ],
            ..TRAFFIC
        };
        for (kernel, userspace, path) in
            [(0, 0, "none"), (9, 0, "kernel"), (0, 9, "userspace"), (9, 9, "both")]
        {
            let line = line(EndReason::Idle, &only(kernel, userspace));
            assert!(line.contains(&format!(" path={path} kernel_packets={kernel} ")), "{line}");
        }
    }

    #[test]
    fn joined_streams_have_bytes_and_no_packets() {
        let side = SideTraffic { bytes: 7, ..SideTraffic::default() };
        let traffic = Traffic { sides: [SideTraffic::default(), side], ..Traffic::default() };
        let line = line(EndReason::Idle, &traffic);
        assert!(line.contains(" target_packets=0 target_bytes=7 path=streams kernel_packets=0 "), "{line}");
    }

    #[test]
    fn no_value_has_a_space_in_it_whatever_the_reason() {
        for reason in EndReason::ALL {
            assert_eq!(line(reason, &TRAFFIC).split(' ').count(), 16, "two words, and 14 fields");
        }
    }
}
