//! Generator and sink, loaded: see `relay-ebpf/src/traffic.rs`.
#![expect(unsafe_code, reason = "what lies in a BPF map is declared to be plain data")]

use std::path::Path;

use anyhow::Context as _;
use aya::maps::{Array, DevMap, Map, MapError, PerCpuArray, PerCpuValues};
use aya::programs::xdp::XdpMode;
use aya::programs::{ProgramInfo, Xdp};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader, Pod, TestRun as _, TestRunAttrs, TestRunOptions};

use crate::traffic_layout::{Arrived, DELAY_BUCKETS, SAMPLE_LEN, SAMPLES, Sample, Sent, Stream, Watch};

// SAFETY: made of numbers only, without padding; so are the following.
unsafe impl Pod for Stream {}
// SAFETY: as for Stream.
unsafe impl Pod for Sent {}
// SAFETY: as for Stream.
unsafe impl Pod for Watch {}
// SAFETY: as for Stream.
unsafe impl Pod for Arrived {}
// SAFETY: as for Stream.
unsafe impl Pod for Sample {}

impl Sample {
    const NONE: Sample = Sample { length: 0, bytes: [0; SAMPLE_LEN] };
}

/// The programs, and what they count.
pub struct Traffic {
    ebpf: Ebpf,
}

impl Traffic {
    /// Loads the benchmark's object.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn load(object: &Path) -> anyhow::Result<Traffic> {
        let mut loader = EbpfLoader::new();
        let ebpf = loader.load_file(object).context("loading the benchmark's programs")?;
        let mut traffic = Traffic { ebpf };
        traffic.program("generate")?.load().context("loading the generator")?;
        Ok(traffic)
    }

    /// Attaches the program `name` in the driver of `interface`, which is in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(&mut self, name: &str, interface: &str) -> anyhow::Result<()> {
        let program = self.program(name)?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("loading `{name}`"))?;
        }
        program.attach(interface, XdpMode::Driver).with_context(|| format!("attaching to {interface}"))?;
        Ok(())
    }

    /// What the kernel says of the program `name`, which is loaded.
    ///
    /// # Errors
    /// It does not say.
    pub fn info(&mut self, name: &str) -> anyhow::Result<ProgramInfo> {
        Ok(self.program(name)?.info()?)
    }

    /// Says where the bare redirect sends to: an interface of the calling thread's namespace.
    ///
    /// # Errors
    /// There is none with this index.
    pub fn direct(&mut self, interface: u32) -> anyhow::Result<()> {
        let mut way_out = DevMap::try_from(self.map_mut("WAY_OUT")?)?;
        way_out.set(0, interface, None, 0).context("the device map")
    }

    /// Forgets what was sent and counted, and says what is to be.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn prepare(&mut self, stream: Stream, watch: Watch) -> anyhow::Result<()> {
        Array::try_from(self.map_mut("STREAM")?)?.set(0, stream, 0)?;
        Array::try_from(self.map_mut("WATCH")?)?.set(0, watch, 0)?;
        let cpus = nr_cpus().map_err(|(_, error)| error).context("the number of CPUs")?;
        let zeroes = |count| PerCpuValues::try_from(vec![count; cpus]);
        PerCpuArray::try_from(self.map_mut("SENT")?)?.set(0, zeroes(Sent::default())?, 0)?;
        let zeroes = |count| PerCpuValues::try_from(vec![count; cpus]);
        PerCpuArray::try_from(self.map_mut("ARRIVED")?)?.set(0, zeroes(Arrived::default())?, 0)?;
        let mut samples = Array::<_, Sample>::try_from(self.map_mut("SAMPLES")?)?;
        for place in 0..SAMPLES {
            samples.set(place, Sample::NONE, 0)?;
        }
        Ok(())
    }

    /// Runs the generator `runs` times, in batches of `batch`, on the calling thread's CPU. The frames come from `interface`
    /// of the calling thread's namespace, beginning as `frame` does but for what the generator writes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn generate(&mut self, frame: &[u8], interface: u32, runs: u32, batch: u32) -> anyhow::Result<()> {
        // linux/bpf.h, struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, u32::try_from(frame.len())?, 0, interface, 0, 0];
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: runs,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::new()
        };
        self.program("generate")?.test_run(options).context("running the generator")?;
        Ok(())
    }

    /// What the generator has made.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn sent(&self) -> anyhow::Result<Sent> {
        let all: PerCpuValues<Sent> = PerCpuArray::try_from(self.map("SENT")?)?.get(&0, 0)?;
        // It has run on one CPU.
        all.iter().copied().find(|sent| sent.frames > 0).context("the generator has made nothing")
    }

    /// What has reached the sink, on all CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn arrived(&self) -> anyhow::Result<Arrived> {
        let all: PerCpuValues<Arrived> = PerCpuArray::try_from(self.map("ARRIVED")?)?.get(&0, 0)?;
        let sum = |sum: Arrived, one: &Arrived| Arrived {
            frames: sum.frames + one.frames,
            first: sum.first.min(one.first),
            last: sum.last.max(one.last),
        };
        let used = all.iter().filter(|one| one.frames > 0);
        Ok(used.copied().reduce(|a, b| sum(a, &b)).unwrap_or_default())
    }

    /// Copies of some of the frames that have reached the sink.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn samples(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let samples = Array::<_, Sample>::try_from(self.map("SAMPLES")?)?;
        let all: Result<Vec<Sample>, MapError> = (0..SAMPLES).map(|place| samples.get(&place, 0)).collect();
        let used = all?.into_iter().filter(|sample| sample.length > 0);
        Ok(used.map(|sample| sample.bytes[..sample.length as usize].to_vec()).collect())
    }

    /// How many frames the sink has counted in each bucket of delays since the object was loaded.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn delays(&self) -> anyhow::Result<Vec<u64>> {
        let delays = PerCpuArray::<_, u64>::try_from(self.map("DELAYS")?)?;
        let counts = (0..DELAY_BUCKETS).map(|bucket| Ok(delays.get(&bucket, 0)?.iter().sum()));
        counts.collect()
    }

    fn program(&mut self, name: &str) -> anyhow::Result<&mut Xdp> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program `{name}`"))?;
        Ok(program.try_into()?)
    }

    fn map(&self, name: &str) -> anyhow::Result<&Map> {
        self.ebpf.map(name).with_context(|| format!("no map {name}"))
    }

    fn map_mut(&mut self, name: &str) -> anyhow::Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }
}
