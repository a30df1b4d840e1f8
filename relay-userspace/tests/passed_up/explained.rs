//! What `explain` says of a packet is what then becomes of it, and saying so changes nothing.

use std::time::Duration;

use relay_common::bucket::TICKS_PER_NS;
use relay_common::{BIND_LEN, Side};
use relay_userspace::relay::datapath::{Explainer, Fate, Packet};
use relay_userspace::relay::udp_frame::UdpFrame;

use super::*;

/// What the kernels of both ends send without being asked: ARP, neighbour discovery, multicast listener reports.
const CHATTER: [Reason; 4] = [Reason::NotIp, Reason::NotUdp, Reason::ExtensionHeader, Reason::OtherStation];

/// What a packet, or being asked about it, could change.
#[derive(Debug, PartialEq, Eq)]
struct Everything {
    program: Vec<(Reason, relay_common::Tally)>,
    forwarder: Vec<u64>,
    slot: Vec<u64>,
}

impl Everything {
    fn of(lab: &Lab, session: &Session) -> Everything {
        let slot = lab.tables.slot(session.slot.0).unwrap();
        let mut words = vec![
            slot.arrival.load(),
            slot.cost_per_byte.load(),
            slot.burst.load(),
            slot.limited_bytes.load(),
            slot.limited_packets.load().into(),
            slot.marked_packets.load().into(),
            slot.marked_at.load().into(),
            slot.generation.load().into(),
        ];
        words.extend(slot.deadline.iter().map(|deadline| deadline.load()));
        words.extend(slot.sides.iter().map(|line| line.traffic.read().0));
        words.extend(slot.sides.iter().map(|line| u64::from(line.sequence.load())));
        Everything {
            program: {
                let tallies = lab.program.tallies().unwrap().into_iter();
                tallies.filter(|(reason, _)| !CHATTER.contains(reason)).collect()
            },
            forwarder: Reason::ALL.iter().map(|reason| lab.forwarder.count(*reason)).collect(),
            slot: words,
        }
    }
}

/// The relay's explainer, and the lab's session.
struct Asked<'a> {
    lab: &'a Lab,
    session: &'a Session,
    explainer: Explainer,
}

impl Asked<'_> {
    /// Asks about a frame of the session's connector.
    fn explain(&mut self, frame: &[u8]) -> Fate {
        let tuple = FlowTuple { agent: self.session.connector, relay: self.session.relay };
        self.ask(tuple, Packet::Frame(frame.to_vec()))
    }

    fn ask(&mut self, tuple: FlowTuple, packet: Packet) -> Fate {
        let before = Everything::of(self.lab, self.session);
        let fate = self.explainer.explain(&self.lab.tables, tuple, packet, MonoTime::now()).unwrap();
        assert_eq!(Everything::of(self.lab, self.session), before, "asking has changed something");
        fate
    }

    /// What is said of the frame is `reason`, and then becomes of it.
    fn explain_then_send(&mut self, frame: &[u8], reason: Reason) -> Fate {
        let fate = self.explain(frame);
        assert_eq!(fate.program.as_ref().unwrap().reason, reason);
        // Bind datagrams are for the socket that control reads, which nobody does here.
        let goes_up = fate.forwarder.is_some_and(|by| by.err() != Some(Reason::Bind));
        self.lab.send_and_settle(frame, reason, goes_up);
        fate
    }
}

impl Lab {
    /// Sends a frame, and waits until the program has counted it for `reason` and, if it `goes_up`, the forwarder for one of
    /// its own: after that it changes nothing any more.
    fn send_and_settle(&self, frame: &[u8], reason: Reason, goes_up: bool) {
        let forwarder = || Reason::ALL.iter().map(|reason| self.forwarder.count(*reason)).sum::<u64>();
        let program = || self.program.tally(reason).unwrap().packets;
        let expected = (program() + 1, forwarder() + u64::from(goes_up));
        self.near.send(frame);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while (program(), forwarder()) != expected {
            assert!(
                std::time::Instant::now() < deadline,
                "{reason:?}: {:?}, not {expected:?}",
                (program(), forwarder())
            );
            std::thread::yield_now();
        }
    }
}

fn explainer() -> Explainer {
    Explainer::with_program(Hook::Native, [3, 4], MAGIC).unwrap()
}

#[test]
fn what_is_explained_of_a_packet_is_what_then_becomes_of_it_and_asking_changes_nothing() {
    let name = "what_is_explained_of_a_packet_is_what_then_becomes_of_it_and_asking_changes_nothing";
    in_lab(Hook::Native, name, |lab| {
        let session = lab.session("10.9.1", "10.9.2", PLAIN);
        let (lab, session) = (&*lab, &session);
        let mut asked = Asked { lab, session, explainer: explainer() };

        // The frame that is shown is the one that arrives, byte for byte.
        let payload = b"as explained";
        let fate = asked.explain_then_send(&session.packet(payload), Reason::Forwarded);
        session.expect(payload);
        let by_program = fate.program.unwrap();
        let explained = UdpFrame::read(&by_program.frame).unwrap();
        assert_eq!((explained.source, explained.destination), (session.from, session.target));
        assert_eq!((explained.ttl, explained.tos, explained.payload), (TTL - 1, TOS, &payload[..]));
        assert!(explained.ip_checksum.unwrap().is_right && explained.udp_checksum.is_right);
        assert_eq!(explained.stations, [FAR_AGENT, FAR]);
        let heard = lab.far.hear(session.target.port(), payload);
        assert_eq!((heard.ttl, heard.tos), (explained.ttl, explained.tos));

        let flow = fate.flow.unwrap();
        assert_eq!((flow.side, flow.previous, flow.hop_number), (Side::Connector, false, PLAIN));
        let target = FlowTuple { agent: session.target, relay: session.from };
        assert_eq!(
            flow.tuples,
            [Some(FlowTuple { agent: session.connector, relay: session.relay }), Some(target)]
        );
        assert!(flow.consent_left.iter().all(|left| (200..=300).contains(&left.as_secs())), "{flow:?}");
        assert_eq!(flow.allowance.bytes_per_s(), Some(LIMIT.bytes_per_s));

        for (frame, reason, then) in [
            (with_options(&session.packet(b"options")), Reason::IpOptions, Some(Ok(()))),
            (with_ttl(&session.packet(b"last hop"), 1), Reason::TtlExpiring, Some(Err(Reason::TtlExpired))),
            (in_fragments(&session.packet(&[7; 2000]))[0].clone(), Reason::Fragment, None),
            (session.packet(&bind()), Reason::Bind, Some(Err(Reason::Bind))),
            (session.packet(&MAGIC), Reason::BindMalformed, None),
        ] {
            let forwarded = lab.forwarder.count(Reason::Forwarded);
            let fate = asked.explain_then_send(&frame, reason);
            assert_eq!(fate.forwarder.map(|by| by.map(|_| ())), then, "{reason:?}");
            match then {
                Some(Ok(())) => until_counted(&lab.forwarder, Reason::Forwarded, forwarded + 1),
                Some(Err(Reason::TtlExpired)) => until_counted(&lab.forwarder, Reason::TtlExpired, 1),
                Some(Err(_)) | None => {}
            }
        }

        // A next hop with less room than the interface it came by.
        let hop = &lab.tables.next_hops()[usize::from(PLAIN)];
        let usual = hop.copy().unwrap();
        hop.write(&Hop { mtu: 576, ..usual });
        asked.explain_then_send(&session.packet(&[7; 1000]), Reason::TooBig);
        hop.write(&usual);

        // A stranger's, with one port that differs.
        let stranger = FlowTuple { agent: (session.connector.ip(), 40_002).into(), relay: session.relay };
        let fate = asked.ask(stranger, Packet::Made { payload: 100 });
        assert_eq!((fate.program.unwrap().reason, fate.flow.is_none()), (Reason::NoFlow, true));
        let frame = fate.frame;
        lab.send_and_settle(&frame, Reason::NoFlow, true);

        let slot = lab.tables.slot(session.slot.0).unwrap();
        let full = MonoTime::now() + Duration::from_secs(100_000);
        let stood = slot.arrival.load();
        slot.arrival.store(full.0 * TICKS_PER_NS);
        asked.explain_then_send(&session.packet(&[7; 500]), Reason::Limited);
        slot.arrival.store(stood);

        slot.deadline[Side::Target.index()].store(0);
        let fate = asked.explain_then_send(&session.packet(b"too late"), Reason::ConsentExpired);
        assert_eq!(fate.flow.unwrap().consent_left[Side::Target.index()], Duration::ZERO);
    });
}

#[test]
fn a_packet_that_is_made_up_comes_by_the_interface_that_leads_to_the_agent_and_is_forwarded() {
    let name = "a_packet_that_is_made_up_comes_by_the_interface_that_leads_to_the_agent_and_is_forwarded";
    for (near, far) in [("10.9.1", "10.9.2"), ("fd00:1:", "fd00:2:"), ("10.9.1", "fd00:2:")] {
        in_lab(Hook::Native, name, |lab| {
            let session = lab.session(near, far, PLAIN);
            let mut asked = Asked { lab, session: &session, explainer: explainer() };
            // All sessions here leave by `far`, so a packet to the connector would too; one of the target's comes by it.
            let target = FlowTuple { agent: session.target, relay: session.from };
            let fate = asked.ask(target, Packet::Made { payload: 1200 });
            let far = lab.tables.interfaces().iter().find(|entry| entry.station() == FAR).unwrap();
            assert_eq!(fate.interface, Some(far.index.load()));
            assert_eq!(fate.program.unwrap().reason, Reason::Forwarded);
            assert_eq!(fate.flow.unwrap().side, Side::Target);
        });
    }
}

#[test]
fn a_tuple_that_a_side_has_just_moved_away_from_is_explained_as_the_forwarder_treats_it() {
    let name = "a_tuple_that_a_side_has_just_moved_away_from_is_explained_as_the_forwarder_treats_it";
    in_lab(Hook::Native, name, |lab| {
        let session = lab.session("10.9.1", "10.9.2", PLAIN);
        let moved = FlowTuple { agent: (session.connector.ip(), 40_003).into(), relay: session.relay };
        lab.flows.rebind(session.slot, Side::Connector, moved, MonoTime::now()).unwrap();
        let mut asked = Asked { lab, session: &session, explainer: explainer() };
        let fate = asked.explain_then_send(&session.packet(b"on its way"), Reason::NoFlow);
        assert!(fate.flow.unwrap().previous);
        assert_eq!(fate.forwarder.unwrap().unwrap().to, session.target);
        session.expect(b"on its way");
        let fate = asked.ask(moved, Packet::Made { payload: 10 });
        assert_eq!(fate.program.unwrap().reason, Reason::Forwarded);
    });
}

#[test]
fn without_a_program_it_is_the_forwarder_that_is_explained() {
    let name = "without_a_program_it_is_the_forwarder_that_is_explained";
    in_lab(Hook::Native, name, |lab| {
        let session = lab.session("10.9.1", "10.9.2", PLAIN);
        let explainer = Explainer::without_program([3, 4], MAGIC);
        let mut asked = Asked { lab, session: &session, explainer };
        let fate = asked.explain(&session.packet(b"by the daemon"));
        assert!(fate.program.is_none());
        assert_eq!(fate.forwarder.unwrap().unwrap().to, session.target);
        let fate = asked.explain(&with_ttl(&session.packet(b"last hop"), 1));
        assert_eq!(fate.forwarder.unwrap().unwrap_err(), Reason::TtlExpired);
    });
}

/// A datagram that begins with the bind magic and is as long as a bind datagram.
fn bind() -> [u8; BIND_LEN] {
    std::array::from_fn(|at| MAGIC.get(at).copied().unwrap_or(0))
}

fn with_ttl(frame: &[u8], ttl: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[22] = ttl;
    set_ip_checksum(&mut frame);
    frame
}
