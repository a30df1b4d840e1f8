//! The lab's own delay line: a link between two namespaces that takes time, loses packets and changes their order.
//!
//! Each end is a TUN device, and one thread carries packets from one to the other. Packets keep their virtio header, so
//! segmentation and checksums that the sender has left to a device stay left to one further on: a burst of segments
//! travels as one packet. A line that is to treat packets differently asks for each alone.

mod queue;

pub use queue::{Conditions, Counts};

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context as _;

use super::Namespace;
use crate::syscall::{self, Segmentation};
use crate::terminal;
use queue::DelayQueue;

/// A running line. Dropping it cuts the link: both devices go.
pub struct DelayLine {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Mutex<[Counts; 2]>>,
}

/// Packets that wait for the line's thread: enough for a burst that comes while it does not run.
const DEVICE_QUEUE_PACKETS: u32 = 20_000;

/// Packets that are read from one end before those that are due are written.
const READ_AT_ONCE: usize = 64;

/// The longest packet with its virtio header.
const MAX_READ: usize = (1 << 16) + 64;

impl DelayLine {
    /// Lays a line between two ends, each a TUN device of this name that is made there. Both are up afterwards, with
    /// `mtu` and without an address. `conditions` are those from the first end to the second and back, and what chance
    /// decides follows from `seed`.
    ///
    /// # Errors
    /// A device cannot be made.
    pub fn lay(
        ends: [(&Namespace, &str); 2],
        mtu: u32,
        conditions: [Conditions; 2],
        seed: u64,
    ) -> anyhow::Result<Self> {
        let [near, far] = ends;
        let [there, back] = conditions;
        let near = open(near, mtu, there)?;
        let far = open(far, mtu, back)?;
        let (stop, stopped) = UnixStream::pair().context("cannot make the delay line's stop signal")?;
        let counts = Arc::new(Mutex::new([Counts::default(); 2]));
        let carrier = Carrier {
            ends: [near, far],
            queues: [DelayQueue::new(there, seed), DelayQueue::new(back, seed ^ u64::MAX)],
            buffer: vec![0; MAX_READ],
            counts: counts.clone(),
            stopped,
        };
        let thread = std::thread::Builder::new().name("delay line".to_owned());
        let thread = thread.spawn(|| carrier.run()).context("cannot start the delay line's thread")?;
        Ok(DelayLine { stop: Some(stop), thread: Some(thread), counts })
    }

    /// What has become of the packets so far, from the first end to the second and back.
    pub fn counts(&self) -> [Counts; 2] {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _carried = thread.join();
        }
    }
}

/// Makes the device of an end.
fn open((namespace, device): (&Namespace, &str), mtu: u32, conditions: Conditions) -> anyhow::Result<File> {
    let segmentation =
        if conditions.tell_packets_apart() { Segmentation::Before } else { Segmentation::LeftToReader };
    let file = namespace
        .inside(|| syscall::open_tun(device, segmentation))?
        .with_context(|| format!("cannot make the TUN device {device} in {}", namespace.name()))?;
    namespace.ip(&format!("link set {device} mtu {mtu} txqueuelen {DEVICE_QUEUE_PACKETS} up\n"))?;
    Ok(file)
}

/// What the thread owns.
struct Carrier {
    ends: [File; 2],
    /// From each end to the other.
    queues: [DelayQueue<Box<[u8]>>; 2],
    buffer: Vec<u8>,
    counts: Arc<Mutex<[Counts; 2]>>,
    stopped: UnixStream,
}

impl Carrier {
    fn run(mut self) {
        if let Err(error) = self.carry() {
            terminal::progress(format!("the delay line is broken: {error}"));
        }
    }

    /// Carries packets until the line is dropped.
    fn carry(&mut self) -> io::Result<()> {
        syscall::wake_on_time()?;
        // A link does not wait for a processor. Where that is not allowed, packets are later now and then.
        let _allowed = syscall::run_first();
        loop {
            let [near, far] = &self.ends;
            let next = self.queues.iter().filter_map(DelayQueue::next_departure).min();
            let wait = next.map(|at| at.saturating_duration_since(Instant::now()));
            let [from_near, from_far, stopped] =
                syscall::wait_readable([near.as_fd(), far.as_fd(), self.stopped.as_fd()], wait)?;
            if stopped {
                return Ok(());
            }
            for (direction, readable) in [from_near, from_far].into_iter().enumerate() {
                if readable {
                    self.read(direction)?;
                }
                self.write_due(direction);
            }
            let counts = self.queues.each_ref().map(DelayQueue::counts);
            *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
        }
    }

    fn read(&mut self, direction: usize) -> io::Result<()> {
        let Carrier { ends, queues, buffer, .. } = self;
        let (Some(mut end), Some(queue)) = (ends.get(direction), queues.get_mut(direction)) else {
            return Ok(());
        };
        for _ in 0..READ_AT_ONCE {
            match end.read(buffer) {
                Ok(length) => {
                    let packet = buffer.get(..length).unwrap_or_default();
                    queue.offer(packet.into(), length, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_due(&mut self, direction: usize) {
        let [near, far] = &self.ends;
        let mut to = if direction == 0 { far } else { near };
        let Some(queue) = self.queues.get_mut(direction) else { return };
        let now = Instant::now();
        while let Some(packet) = queue.take_due(now) {
            if to.write(&packet).is_err() {
                queue.refused();
            }
        }
    }
}
