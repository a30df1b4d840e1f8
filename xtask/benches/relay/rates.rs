//! Section 2: how many packets a second one core forwards.
//!
//! See `track.rs` for which core does what. What is compared takes turns.

use anyhow::Context as _;
use relay_userspace::relay::datapath::Hook;
use xtask::lab::Site;
use xtask::terminal;

use crate::Bench;
use crate::course::Load;
use crate::cpu;
use crate::report::Report;
use crate::rounds::{Candidate, Samples, in_turns};
use crate::track::{End, Track};
use crate::traffic::Traffic;
use crate::wires::{Links, Wires};
use crate::{kernel_forwarders, process_forwarders, xdp_forwarders};

const ROUNDS: usize = 7;
const UNIT: &str = "packets/s";

/// What forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    BareReflector,
    NativeSame,
    BareRedirect,
    Native,
    Generic,
    Routing,
    Nat,
    Userspace,
    PlainLoop,
    Coturn,
}

use Subject::{
    BareRedirect, BareReflector, Coturn, Generic, Nat, Native, NativeSame, PlainLoop, Routing, Userspace,
};

/// All of them: what has a core of its own at the end.
const ALL: [Subject; 10] =
    [BareReflector, NativeSame, BareRedirect, Native, Generic, Routing, Nat, Userspace, PlainLoop, Coturn];

/// What is compared with what.
const COMPARED: [(Subject, Subject); 8] = [
    (NativeSame, BareReflector),
    (Native, BareRedirect),
    (Native, Nat),
    (Native, Coturn),
    (Generic, BareReflector),
    (Routing, BareRedirect),
    (Userspace, Coturn),
    (Userspace, PlainLoop),
];

/// What many flows are measured with.
const MANY: [Subject; 3] = [Native, Nat, Userspace];

/// Measures each in each configuration.
pub fn run(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    cpu::come_first()?;
    for payload in [64, 1200] {
        for flows in [1, 256] {
            compare(bench, report, &ALL, Load { flows, payload })?;
        }
    }
    compare(bench, report, &MANY, Load { flows: 100_000, payload: 64 })?;
    scale(bench, report)?;
    report.note(
        "rates: with XDP and the kernel's forwarders one core does everything, generator and sink included; the userspace \
         forwarder, the loop and coturn have one core for themselves, and the generator the other, which offers more than \
         they take.",
    );
    Ok(())
}

/// Measures `subjects` under the same load.
fn compare(bench: &Bench, report: &mut Report, subjects: &[Subject], load: Load) -> anyhow::Result<()> {
    terminal::progress(format!("rates of {}", shown(load)));
    let site = Site::prepare()?;
    let mut tracks = Vec::new();
    for subject in subjects {
        tracks.push(subject.track(bench, &site, load, End::Sink).with_context(|| subject.row(load))?);
    }
    let samples = measure(&mut tracks, subjects.iter().map(|subject| subject.row(load)).collect())?;
    for (subject, _) in subjects.iter().zip(&tracks).filter(|(_, track)| track.is_outrun()) {
        report.note(format!("{}: the generator cannot offer more", subject.row(load)));
    }
    let place = |subject| subjects.iter().position(|other| *other == subject);
    for (subject, found) in subjects.iter().zip(&samples) {
        let mut others = COMPARED
            .iter()
            .filter(|(this, _)| this == subject)
            .filter_map(|(_, other)| place(*other))
            .peekable();
        if others.peek().is_none() {
            report.add(subject.row(load), UNIT, found);
        }
        for other in others {
            report.add_beside(subject.row(load), UNIT, found, &subjects[other].row(load), &samples[other]);
        }
    }
    Ok(())
}

/// Measures what a thousand times as many flows cost.
fn scale(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let loads = [1000, 1_000_000].map(|flows| Load { flows, payload: 64 });
    let rows = loads.map(|load| NativeSame.row(load));
    terminal::progress(format!("rates of {} and {}", shown(loads[0]), shown(loads[1])));
    let site = Site::prepare()?;
    let tracks: anyhow::Result<Vec<_>> =
        loads.iter().map(|load| NativeSame.track(bench, &site, *load, End::Sink)).collect();
    let samples = measure(&mut tracks?, rows.to_vec())?;
    report.add(&rows[0], UNIT, &samples[0]);
    report.add_beside(&rows[1], UNIT, &samples[1], &rows[0], &samples[0]);
    Ok(())
}

fn measure(tracks: &mut [Track], names: Vec<String>) -> anyhow::Result<Vec<Samples>> {
    for (track, name) in tracks.iter_mut().zip(&names) {
        track.warm_up().with_context(|| format!("warming up: {name}"))?;
    }
    let candidate = |(track, name): (_, _)| {
        let track: &mut Track = track;
        let name: &String = name;
        Candidate::new(name, move || track.rate())
    };
    let mut candidates: Vec<_> = tracks.iter_mut().zip(&names).map(candidate).collect();
    in_turns(ROUNDS, &mut candidates)
}

impl Subject {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            BareReflector => "bare XDP reflector",
            NativeSame => "XDP native, same interface",
            BareRedirect => "bare XDP redirect",
            Native => "XDP native, redirect",
            Generic => "XDP generic",
            Routing => "kernel IP forwarding",
            Nat => "nftables DNAT + masquerade",
            Userspace => "userspace forwarder",
            PlainLoop => "recvmmsg/sendmmsg loop",
            Coturn => "coturn, ChannelData",
        }
    }

    /// Its row in the report.
    pub fn row(self, load: Load) -> String {
        format!("rate, {}, {}", self.name(), shown(load))
    }

    /// Puts it between a generator and `end`.
    pub fn track(self, bench: &Bench, site: &Site, load: Load, end: End) -> anyhow::Result<Track> {
        let links = match self {
            BareReflector | NativeSame | Generic => Links::One,
            _ => Links::Two,
        };
        let wires = Wires::lay(site, &format!("{self:?}{}", load.flows).to_lowercase(), links)?;
        let traffic = Traffic::load(&bench.object)?;
        match self {
            BareReflector | BareRedirect => xdp_forwarders::bare(traffic, wires, load),
            NativeSame | Native => xdp_forwarders::relay(traffic, wires, load, end, Hook::Native),
            Generic => xdp_forwarders::relay(traffic, wires, load, end, Hook::Generic),
            Routing => kernel_forwarders::routing(traffic, wires, load, end),
            Nat => kernel_forwarders::nat(traffic, wires, load),
            Userspace => process_forwarders::relay(traffic, wires, load, end),
            PlainLoop => process_forwarders::plain(traffic, wires, load),
            Coturn => process_forwarders::coturn(traffic, wires, load, site.directory()),
        }
    }
}

fn shown(Load { flows, payload }: Load) -> String {
    match flows {
        1 => format!("{payload} B, 1 flow"),
        _ if flows >= 1_000_000 => format!("{payload} B, {},000,000 flows", flows / 1_000_000),
        _ if flows >= 1000 => format!("{payload} B, {},000 flows", flows / 1000),
        _ => format!("{payload} B, {flows} flows"),
    }
}
