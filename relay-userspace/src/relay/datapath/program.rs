//! The XDP program: loaded, attached, its maps mapped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use aya::maps::{Array, DevMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::programs::{ProgramError, ProgramFd, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader, TestRun as _, TestRunOptions};
use aya_log::EbpfLogger;
use relay_common::hash::{self, HashKey, HashSeed};
use relay_common::{BIND_MAGIC_LEN, PerCpu, Reason, Tally, maps};

use super::attach_fault::attach_fault;
use super::backing::Backing;
use super::descriptors::{create_link, replace_descriptor, update_link};
use super::next_hops::Link;
use super::tables::{TableSizes, Tables};
use crate::clock::MonoTime;

/// The program's object, if this binary was built with it.
#[cfg(bpf_object)]
pub const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/relay.bpf.o")));
/// The program's object, if this binary was built with it.
#[cfg(not(bpf_object))]
pub const OBJECT: Option<&[u8]> = None;

/// A [`PerCpu`] as pairs of words: its time, then a tally for each reason, then that of marked packets.
type PerCpuPairs = [[u64; 2]; 2 + Reason::COUNT];

const _: () = assert!(size_of::<PerCpu>() == size_of::<PerCpuPairs>());

/// The name of the program in the object.
pub(super) const PROGRAM: &str = "relay";

/// Where on a packet's way the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// In the driver, before the kernel spends anything on the packet.
    Native,
    /// In the stack, for drivers without XDP: works everywhere, costs more.
    Generic,
}

impl Hook {
    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Hook::Native => "xdp-native",
            Hook::Generic => "xdp-generic",
        }
    }
}

/// An interface to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, for people.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address.
    pub station: [u8; 6],
    /// The largest IP packet that fits its frames, in bytes.
    pub mtu: u32,
}

/// Why the program does not run.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The binary has no object in it.
    #[error("this binary was built without the BPF program: build it with `cargo xtask build`")]
    NotBuilt,
    /// Nothing to attach to.
    #[error("no interface to attach to: name one with --interface or datapath.interfaces")]
    NoInterface,
    /// The kernel refused the object, or may not be asked.
    #[error(
        "loading the XDP program: {}; it needs root or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and Linux 5.18 or later",
        chain(.0)
    )]
    Load(#[source] Box<EbpfError>),
    /// The kernel refused the program.
    #[error("loading the XDP program: {0}")]
    Program(#[source] Box<ProgramError>),
    /// The kernel did not run it.
    #[error("running the XDP program on a frame: {0}")]
    Run(#[source] Box<ProgramError>),
    /// A map is not what this version expects.
    #[error("map {map} of the XDP program: {fault}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What is wrong.
        fault: String,
    },
    /// What a predecessor has left cannot be used.
    #[error("going on with what the relay before has left: {fault}")]
    Left {
        /// What is wrong.
        fault: String,
    },
    /// The interface did not take the program.
    #[error("attaching to {interface} as {hook}: {fault}", hook = hook.name())]
    Attach {
        /// Its name.
        interface: String,
        /// What was tried.
        hook: Hook,
        /// What is wrong, and what to do about it.
        fault: String,
    },
}

/// The loaded program and what it is attached to. Dropping it detaches it.
pub struct Program {
    ebpf: Ebpf,
    per_cpu: PerCpuArray<MapData, PerCpuPairs>,
    pub(super) attached: Vec<(Port, Hook, OwnedFd)>,
    backing: Backing,
}

impl Program {
    /// Loads the program with tables of `sizes`, to be attached at `hook`, and maps the tables.
    ///
    /// # Errors
    /// See [`XdpError`].
    pub fn load(
        hook: Hook,
        sizes: TableSizes,
        hash_seed: HashSeed,
        bind_magic: [u8; BIND_MAGIC_LEN],
    ) -> Result<(Program, Tables, EgressMap), XdpError> {
        Program::load_with(hook, sizes, hash_seed, bind_magic, false)
    }

    /// As [`Program::load`], but the program takes the time from [`Program::set_clock`]: for comparing it with the host
    /// code.
    ///
    /// # Errors
    /// See [`XdpError`].
    pub fn load_with_fixed_clock(
        hook: Hook,
        sizes: TableSizes,
        hash_seed: HashSeed,
        bind_magic: [u8; BIND_MAGIC_LEN],
    ) -> Result<(Program, Tables, EgressMap), XdpError> {
        Program::load_with(hook, sizes, hash_seed, bind_magic, true)
    }

    /// Loads the program, to be attached at `hook`, over tables that a predecessor has left, with whatever stands in them.
    ///
    /// # Errors
    /// See [`XdpError`].
    pub fn load_over(hook: Hook, backing: Backing) -> Result<(Program, Tables, EgressMap), XdpError> {
        let tables = backing.tables().map_err(left)?;
        let (sizes, made) = (backing.sizes(), ObjectSizes::LEAST);
        let ebpf = object(hook, made, sizes, &tables.hash_key, tables.bind_magic, false)?;
        for (name, descriptor) in backing.descriptors() {
            // Some of them the program does not know of.
            if let Some(map) = ebpf.map(name) {
                replace_descriptor(data(map, name)?.fd().as_fd(), descriptor).map_err(left)?;
            }
        }
        Program::of(ebpf, backing, tables)
    }

    fn load_with(
        hook: Hook,
        sizes: TableSizes,
        hash_seed: HashSeed,
        bind_magic: [u8; BIND_MAGIC_LEN],
        fixed_clock: bool,
    ) -> Result<(Program, Tables, EgressMap), XdpError> {
        let (magic, hash_key) = (u64::from_ne_bytes(bind_magic), hash::key(hash_seed));
        let ebpf = object(hook, ObjectSizes::of(sizes), sizes, &hash_key, magic, fixed_clock)?;
        let map = |name: &str| {
            let map = ebpf.map(name).ok_or_else(|| io::Error::other(format!("no {name} in the object")))?;
            data(map, maps::META).map_err(io::Error::other)?.fd().as_fd().try_clone_to_owned()
        };
        let fail = |error: io::Error| XdpError::Map { map: maps::SESSIONS, fault: error.to_string() };
        let backing = Backing::of_program(sizes, hash_seed, bind_magic, map).map_err(fail)?;
        let tables = backing.tables().map_err(fail)?;
        Program::of(ebpf, backing, tables)
    }

    /// Loads what `ebpf` has, over the maps that it names by now.
    fn of(
        mut ebpf: Ebpf,
        backing: Backing,
        tables: Tables,
    ) -> Result<(Program, Tables, EgressMap), XdpError> {
        xdp(&mut ebpf)?.load().map_err(|error| XdpError::Program(Box::new(error)))?;
        let egress = EgressMap(typed(&mut ebpf, maps::EGRESS)?);
        let per_cpu = typed(&mut ebpf, maps::PER_CPU)?;
        Ok((Program { ebpf, per_cpu, attached: Vec::new(), backing }, tables, egress))
    }

    /// What its tables lie in.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Takes the place of a predecessor's program at `port`: from the next packet on this one runs there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn succeed(
        &mut self,
        tables: &Tables,
        port: Port,
        hook: Hook,
        link: OwnedFd,
    ) -> Result<(), XdpError> {
        let fail = |fault: String| XdpError::Attach { interface: port.name.clone(), hook, fault };
        describe_port(tables, &port).map_err(fail)?;
        let program = xdp(&mut self.ebpf)?.fd().map_err(|error| XdpError::Program(Box::new(error)))?;
        update_link(link.as_fd(), program.as_fd())
            .map_err(|error| fail(format!("taking the place of the program before this one: {error}")))?;
        self.attached.push((port, hook, link));
        Ok(())
    }

    /// Attaches the program to `port`, and describes the port to it.
    ///
    /// # Errors
    /// [`XdpError::Attach`]: the driver has no XDP, another program is there, or there is no permission.
    pub fn attach(&mut self, tables: &Tables, port: Port, hook: Hook) -> Result<(), XdpError> {
        let fail = |fault: String| XdpError::Attach { interface: port.name.clone(), hook, fault };
        describe_port(tables, &port).map_err(fail)?;
        let program = xdp(&mut self.ebpf)?.fd().map_err(|error| XdpError::Program(Box::new(error)))?;
        let link = create_link(program.as_fd(), port.index, hook)
            .map_err(|error| fail(attach_fault(&error, &port)))?;
        self.attached.push((port, hook, link));
        Ok(())
    }

    /// Describes an interface it is attached to anew: its facts have changed.
    pub fn describe(&self, tables: &Tables, link: &Link) {
        let attached = self.attached.iter().any(|(port, ..)| port.index == link.index);
        let entry = tables.interfaces.iter().find(|entry| entry.index.load() == link.index);
        if let (true, Some(entry), Some(station)) = (attached, entry, link.mac) {
            entry.write(link.index, station, link.mtu);
        }
    }

    /// What it is attached to.
    pub fn attached(&self) -> impl Iterator<Item = (&Port, Hook)> {
        self.attached.iter().map(|(port, hook, _)| (port, *hook))
    }

    /// What keeps it attached, by the interface's index.
    pub fn links(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.attached.iter().map(|(port, _, link)| (port.index, link.as_fd()))
    }

    /// What the program has counted, and those before it whose counters it goes on with: all CPUs together, in the order of
    /// [`Reason::ALL`].
    ///
    /// # Errors
    /// The map could not be read.
    pub fn tallies(&self) -> Result<Vec<(Reason, Tally)>, XdpError> {
        let mut sums: Vec<_> = Reason::ALL.iter().map(|reason| (*reason, Tally::default())).collect();
        for [_coarse_time, tallies @ .., _marked] in self.of_cpus()?.iter() {
            for ((_, sum), tally) in sums.iter_mut().zip(tallies) {
                add(sum, tally);
            }
        }
        Ok(sums)
    }

    /// The packets that the program has marked CE, counted likewise, with their UDP payload bytes.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn marked(&self) -> Result<Tally, XdpError> {
        let mut sum = Tally::default();
        for [.., marked] in self.of_cpus()?.iter() {
            add(&mut sum, marked);
        }
        Ok(sum)
    }

    fn of_cpus(&self) -> Result<PerCpuValues<PerCpuPairs>, XdpError> {
        let fail = |error: MapError| XdpError::Map { map: maps::PER_CPU, fault: error.to_string() };
        self.per_cpu.get(&0, 0).map_err(fail)
    }

    /// What the program has counted for one reason.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn tally(&self, reason: Reason) -> Result<Tally, XdpError> {
        let found = self.tallies()?.into_iter().find(|(of, _)| *of == reason);
        Ok(found.map(|(_, tally)| tally).unwrap_or_default())
    }

    /// Puts what the program logs into our log, if it was built to log (see CONTRIBUTING.md). Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// The program's log buffer cannot be read.
    pub fn follow_log(&mut self) -> Result<(), XdpError> {
        const BUFFER: &str = "AYA_LOGS";
        if self.ebpf.map(BUFFER).is_none() {
            return Ok(());
        }
        let fail = |fault: String| XdpError::Map { map: BUFFER, fault };
        let mut logger = EbpfLogger::init(&mut self.ebpf).map_err(|error| fail(error.to_string()))?;
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            loop {
                tick.tick().await;
                logger.flush();
            }
        });
        Ok(())
    }

    /// Runs the program once on a copy of `frame` (BPF_PROG_TEST_RUN), as if it came by the loopback interface of this
    /// network namespace: the XDP action and the frame afterwards. Counts and charges like any packet, sends nothing.
    ///
    /// The first `metadata` bytes of `frame` are metadata in front of the frame proper, as a driver may put there: they
    /// take from the room that a longer header needs. A multiple of four, at most 252.
    ///
    /// # Errors
    /// The kernel refused the run: not permitted, or the frame is shorter than an Ethernet header or too long.
    pub fn run(&mut self, frame: &[u8], metadata: u8) -> Result<(u32, Vec<u8>), XdpError> {
        // Room for a longer header: translation to IPv6 adds 20 bytes.
        let mut out = vec![0; frame.len() + 64];
        // linux/bpf.h, struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let words = [u32::from(metadata), length, 0, 0, 0, 0];
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (metadata > 0).then_some(&*context),
            ..TestRunOptions::new()
        };
        let result =
            xdp(&mut self.ebpf)?.test_run(options).map_err(|error| XdpError::Run(Box::new(error)))?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// The loaded program, for another one to call in its own place.
    ///
    /// # Errors
    /// No more file descriptors.
    pub fn descriptor(&mut self) -> Result<ProgramFd, XdpError> {
        let program = xdp(&mut self.ebpf)?.fd().map_err(|error| XdpError::Program(Box::new(error)))?;
        program.try_clone().map_err(|error| XdpError::Map { map: PROGRAM, fault: error.to_string() })
    }

    /// Sets the time of a program that was loaded with `FIXED_CLOCK`, in nanoseconds.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_clock(&mut self, now: MonoTime) -> Result<(), XdpError> {
        let fail = |fault: String| XdpError::Map { map: maps::CLOCK, fault };
        let map = self.ebpf.map_mut(maps::CLOCK).ok_or_else(|| fail("not in the object".into()))?;
        let mut clock = Array::<_, u64>::try_from(map).map_err(|error| fail(error.to_string()))?;
        clock.set(0, now.0, 0).map_err(|error| fail(error.to_string()))
    }
}

/// The device map: by which interface a next hop leaves that is redirected to.
pub struct EgressMap(DevMap<MapData>);

impl EgressMap {
    /// Makes next hop `hop` leave by the interface with index `interface`.
    ///
    /// # Errors
    /// The kernel refused: the interface is gone.
    pub fn set(&mut self, hop: u32, interface: u32) -> Result<(), XdpError> {
        self.0
            .set(hop, interface, None, 0)
            .map_err(|error| XdpError::Map { map: maps::EGRESS, fault: error.to_string() })
    }
}

fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, XdpError> {
    ebpf.program_mut(PROGRAM)
        .ok_or(XdpError::Map { map: PROGRAM, fault: "not in the object".into() })?
        .try_into()
        .map_err(|error| XdpError::Program(Box::new(error)))
}

/// An error with its causes: the kernel's own words are the innermost.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        // Some errors tell their cause themselves.
        if !text.contains(&inner.to_string()) {
            text = format!("{text}: {inner}");
        }
        cause = inner.source();
    }
    text
}

/// How large the library makes the arrays whose size is ours to choose.
#[derive(Clone, Copy)]
struct ObjectSizes {
    slots: u32,
    buckets: u32,
}

impl ObjectSizes {
    /// Of arrays that are not used.
    const LEAST: ObjectSizes = ObjectSizes { slots: 1, buckets: 1 };

    fn of(TableSizes { slots, buckets }: TableSizes) -> ObjectSizes {
        ObjectSizes { slots, buckets }
    }
}

/// The object with its maps made, and its program not yet loaded, which is for `hook` and tables of `sizes`.
fn object(
    hook: Hook,
    made: ObjectSizes,
    sizes: TableSizes,
    hash_key: &HashKey,
    magic: u64,
    fixed_clock: bool,
) -> Result<Ebpf, XdpError> {
    let object = OBJECT.ok_or(XdpError::NotBuilt)?;
    let (mask, fixed_clock) = (sizes.buckets - 1, u32::from(fixed_clock));
    let bare_frames = u32::from(hook == Hook::Native);
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries(maps::SLOTS, made.slots)
        .map_max_entries(maps::INDEX, made.buckets)
        .override_global(maps::BUCKET_MASK, &mask, true)
        .override_global(maps::BIND_MAGIC, &magic, true)
        .override_global(maps::BARE_FRAMES, &bare_frames, true)
        .override_global(maps::FIXED_CLOCK, &fixed_clock, true);
    for (name, word) in maps::HASH_KEY.into_iter().zip(hash_key) {
        loader.override_global(name, word, true);
    }
    loader.load(object).map_err(|error| XdpError::Load(Box::new(error)))
}

/// Describes an interface that the program is about to be attached to.
fn describe_port(tables: &Tables, port: &Port) -> Result<(), String> {
    let entry = usize::try_from(port.index)
        .ok()
        .and_then(|index| tables.interfaces.get(index % tables.interfaces.len()))
        .ok_or("the interface table is empty")?;
    let holder = entry.index.load();
    if holder != 0 && holder != port.index {
        return Err(format!(
            "its index {} shares a table entry with interface index {holder}: attach to one of the two only",
            port.index
        ));
    }
    entry.write(port.index, port.station, port.mtu);
    Ok(())
}

/// A map as the library holds it.
fn data<'m>(map: &'m Map, name: &'static str) -> Result<&'m MapData, XdpError> {
    match map {
        Map::Array(data) | Map::PerCpuArray(data) | Map::DevMap(data) => Ok(data),
        _ => {
            Err(XdpError::Map { map: name, fault: "a map of another kind than any of the program's".into() })
        }
    }
}

fn add(sum: &mut Tally, [packets, bytes]: &[u64; 2]) {
    sum.packets += packets;
    sum.bytes += bytes;
}

fn left(error: io::Error) -> XdpError {
    XdpError::Left { fault: error.to_string() }
}

fn typed<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, XdpError> {
    let fail = |fault: String| XdpError::Map { map: name, fault };
    let map = ebpf.take_map(name).ok_or_else(|| fail("not in the object".into()))?;
    T::try_from(map).map_err(|error| fail(error.to_string()))
}
