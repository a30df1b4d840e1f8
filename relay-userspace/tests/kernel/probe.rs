//! The probe, loaded, and the relay's program behind it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray, ProgramArray};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunOptions};
use etherparse::PacketBuilder;
use relay_common::Reason;
use relay_common::next_hop::{Egress, Hop, station_words};
use relay_userspace::relay::datapath::{FlowTuple, Hook, Program, TableSizes, Tables};

use crate::machine::{Machine, stay_on};
use crate::probe_layout::{Case, HEAD_WORDS, Outcome, ProbedFrame, Words};

/// TEST_RUN runs the program as if the frame came by the loopback interface.
const LOOPBACK: u32 = 1;
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 2];
const MAGIC: [u8; 8] = [0x2a, 1, 2, 3, 4, 5, 6, 7];
const HEADERS: usize = 42;
const TTL: u8 = 64;

/// Key of the index's hash.
pub const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

/// The relay's address.
pub const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)), 4433);

// SAFETY: made of numbers only, without padding.
unsafe impl aya::Pod for Case {}

/// An agent's tuple.
pub fn agent(ip: Ipv4Addr, port: u16) -> FlowTuple {
    FlowTuple { agent: SocketAddr::from((ip, port)), relay: RELAY }
}

/// What the frames of one direction of a session are like: `payload` bytes from the agent `from` to the agent `to`.
pub fn case(from: FlowTuple, to: FlowTuple, payload: usize) -> Case {
    let came = frame([GATEWAY, STATION], [from.agent, from.relay], TTL, payload);
    let left = frame([STATION, GATEWAY], [to.relay, to.agent], TTL - 1, payload);
    Case { fresh: head(&came), forwarded: head(&left) }
}

/// A whole frame with all checksums, by another library than the relay's.
fn frame(
    [from, to]: [[u8; 6]; 2],
    [source, destination]: [SocketAddr; 2],
    ttl: u8,
    payload: usize,
) -> Vec<u8> {
    let (IpAddr::V4(source_ip), IpAddr::V4(destination_ip)) = (source.ip(), destination.ip()) else {
        panic!("the probe's frames are IPv4");
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from, to)
        .ipv4(source_ip.octets(), destination_ip.octets(), ttl)
        .udp(source.port(), destination.port())
        .write(&mut frame, &vec![0; payload])
        .unwrap();
    frame
}

fn head(frame: &[u8]) -> [u64; HEAD_WORDS] {
    let mut words = [0; HEAD_WORDS];
    for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap());
    }
    words
}

/// The relay's program with tables of `sizes`, one next hop and one interface.
pub fn load_relay(sizes: TableSizes) -> (Program, Arc<Tables>) {
    let (program, tables, _egress) = Program::load(Hook::Native, sizes, KEY, MAGIC).unwrap();
    tables.interfaces()[LOOPBACK as usize].write(LOOPBACK, STATION, 1500);
    let stations = station_words(GATEWAY, STATION);
    tables.next_hops()[0].write(&Hop {
        egress: Egress::Transmit,
        interface: LOOPBACK,
        mtu: 1500,
        stations,
        vlan: 0,
    });
    (program, Arc::new(tables))
}

/// Packets that the program has counted for `reason`.
pub fn counted(program: &Program, reason: Reason) -> u64 {
    program.tallies().unwrap().into_iter().find(|(of, _)| *of == reason).unwrap().1.packets
}

/// The probe in front of a relay's program.
pub struct Probe {
    ebpf: Ebpf,
    outcomes: PerCpuArray<MapData, u64>,
    cases: Vec<Case>,
    _relay: ProgramArray<MapData>,
}

impl Probe {
    /// Loads the probe to send frames of `cases`, each as likely as the others.
    pub fn load(machine: &Machine, relay: &mut Program, cases: Vec<Case>) -> Probe {
        let count = u32::try_from(cases.len()).unwrap();
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader
            .map_max_entries("CASES", count)
            .map_max_entries("OUTCOMES", count * Outcome::COUNT)
            .override_global("CASE_COUNT", &count, true)
            .load_file(&machine.probe)
            .unwrap();
        for program in ["probe", "words"] {
            let program: &mut Xdp = ebpf.program_mut(program).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let mut to_send = Array::<_, Case>::try_from(ebpf.take_map("CASES").unwrap()).unwrap();
        for (number, case) in cases.iter().enumerate() {
            to_send.set(number as u32, case, 0).unwrap();
        }
        let outcomes = PerCpuArray::try_from(ebpf.take_map("OUTCOMES").unwrap()).unwrap();
        let mut programs = ProgramArray::try_from(ebpf.take_map("RELAY").unwrap()).unwrap();
        programs.set(0, &relay.descriptor().unwrap(), 0).unwrap();
        Probe { ebpf, outcomes, cases, _relay: programs }
    }

    /// A sender of frames with `payload` bytes. Frames are chosen by `seed`.
    pub fn lane(&self, payload: usize, seed: u32) -> Lane<'_> {
        // As if a run before had forwarded a frame of the first case.
        let mut frame = vec![0; HEADERS + payload];
        for (bytes, word) in frame.chunks_exact_mut(8).zip(self.cases[0].forwarded) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let at = std::mem::offset_of!(ProbedFrame, chance);
        frame[at..at + 4].copy_from_slice(&seed.to_ne_bytes());
        Lane { probe: self, frame }
    }

    /// How many frames of each case came to each outcome, after all `lanes` have ended.
    pub fn outcomes(&self, lanes: &[Lane<'_>]) -> Vec<[u64; Outcome::COUNT as usize]> {
        let read = |place: u32| self.outcomes.get(&place, 0).unwrap().iter().sum::<u64>();
        let all = [Outcome::Forwarded, Outcome::Untouched, Outcome::Wrong];
        let mut outcomes: Vec<_> =
            (0..self.cases.len() as u32).map(|case| all.map(|outcome| read(outcome.place(case)))).collect();
        for lane in lanes {
            // The probe looks at a frame when the next is sent: it has counted the one that never was, and not yet the
            // last.
            outcomes[0][Outcome::Forwarded as usize] -= 1;
            let (case, outcome) = lane.last();
            outcomes[case][outcome as usize] += 1;
        }
        outcomes
    }

    /// Runs `words` `repeat` times.
    pub fn exercise_words(&self, repeat: u32) {
        self.program("words").test_run(options(&[0; HEADERS], None, repeat)).unwrap();
    }

    /// The words that it works on, in order.
    pub fn words(&self) -> [u64; size_of::<Words>() / 8] {
        Array::try_from(self.ebpf.map("WORDS").unwrap()).unwrap().get(&0, 0).unwrap()
    }

    fn program(&self, name: &str) -> &Xdp {
        self.ebpf.program(name).unwrap().try_into().unwrap()
    }
}

/// One sender of the probe's frames.
pub struct Lane<'a> {
    probe: &'a Probe,
    frame: Vec<u8>,
}

impl Lane<'_> {
    /// Sends `repeat` frames on `cpu`: the mean time of one.
    pub fn send(&mut self, cpu: usize, repeat: u32) -> Duration {
        stay_on(cpu);
        let came = self.frame.clone();
        let options = options(&came, Some(&mut self.frame), repeat);
        let result = self.probe.program("probe").test_run(options).unwrap();
        assert_ne!(result.return_value, 0, "aborted");
        result.duration
    }

    /// Case and outcome of the last frame.
    fn last(&self) -> (usize, Outcome) {
        let at = std::mem::offset_of!(ProbedFrame, case);
        let case = u32::from_ne_bytes(self.frame[at..at + 4].try_into().unwrap()) as usize;
        (case, Outcome::of(&head(&self.frame), &self.probe.cases[case]))
    }
}

fn options<'a>(data_in: &'a [u8], data_out: Option<&'a mut [u8]>, repeat: u32) -> TestRunOptions<'a> {
    TestRunOptions { data_in: Some(data_in), data_out, repeat, ..TestRunOptions::new() }
}
