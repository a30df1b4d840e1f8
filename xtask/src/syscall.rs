//! The few system calls that std has no name for. All of xtask's unsafe code is here.

#![expect(unsafe_code, reason = "namespaces, signals, TUN devices and ppoll have no safe form in std")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// Whether this process may do what root may.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Moves the calling thread, and no other, into the network namespace `namespace` is open on.
pub fn enter_network_namespace(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `namespace` is borrowed; setns reads nothing else of ours.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `command` start in a network namespace (`None`: ours), in a process group of its own, so that a Ctrl-C at the
/// terminal reaches xtask alone, and makes the kernel kill it when the thread that started it ends: even a SIGKILL of
/// xtask leaves no daemon behind.
pub fn prepare_child(command: &mut Command, namespace: Option<File>) {
    let child = move || {
        if let Some(namespace) = &namespace {
            enter_network_namespace(namespace)?;
        }
        // SAFETY: prctl with PR_SET_PDEATHSIG takes one integer and touches no memory.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs between fork and exec; it makes two system calls and neither allocates nor locks.
    unsafe { command.pre_exec(child) };
    command.process_group(0);
}

/// Makes `command` start with `descriptors` as its descriptors from `first` on.
pub fn hand_over(command: &mut Command, first: RawFd, descriptors: Vec<OwnedFd>) {
    let child = move || {
        for (number, descriptor) in (first..).zip(&descriptors) {
            // SAFETY: dup2 takes two integers. What `number` stood for is the child's alone to lose.
            if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec; it makes system calls that neither allocate nor lock.
    unsafe { command.pre_exec(child) };
}

/// Whether two descriptors are of the same open file.
pub fn is_same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    const KCMP_FILE: libc::c_int = 0; // linux/kcmp.h
    let process = std::process::id();
    // SAFETY: kcmp takes five integers and touches no memory.
    unsafe {
        libc::syscall(libc::SYS_kcmp, process, process, KCMP_FILE, one.as_raw_fd(), other.as_raw_fd()) == 0
    }
}

/// Sends `signal` to `process`. A process that is gone already is no error.
pub fn send_signal(process: u32, signal: i32) {
    let Ok(process) = i32::try_from(process) else { return };
    // SAFETY: kill takes two integers. A positive id names one process, never a group.
    unsafe { libc::kill(process, signal) };
}

/// Makes SIGINT and SIGTERM call `handler`, which may do only what is safe in a signal handler.
pub fn on_stop_signals(handler: extern "C" fn(i32)) {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler = handler as *const () as libc::sighandler_t;
        // SAFETY: `handler` is a function of the type signal(2) asks for and lives as long as the program.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Who divides the segments that a sender hands to a TUN device as one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// The device hands them over as they came, for whoever comes next.
    LeftToReader,
    /// The kernel, before the device: each packet is read alone.
    Before,
}

/// Makes the TUN device `name` in the calling thread's network namespace; it stays in there, wherever its file is used.
/// Reads do not block. Each packet, read or written, begins with a `virtio_net_hdr`, and its checksum may be left to
/// whoever comes next.
pub fn open_tun(name: &str, segmentation: Segmentation) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    if name.len() >= ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of the device is too long"));
    }
    for (to, byte) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte as libc::c_char;
    }
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let mut request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns; its name ends with a zero.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let unsegmented = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let datagrams_too = unsegmented | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let offload = |features: libc::c_uint| {
        let features = libc::c_ulong::from(libc::TUN_F_CSUM | features);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, features) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    match segmentation {
        Segmentation::Before => offload(0)?,
        // Before Linux 6.2 datagrams are always divided before the device.
        Segmentation::LeftToReader => offload(datagrams_too).or_else(|_| offload(unsegmented))?,
    }
    Ok(file)
}

/// Makes waits of the calling thread end when they should: by default they may last 50 us longer.
pub fn wake_on_time() -> io::Result<()> {
    // SAFETY: prctl with PR_SET_TIMERSLACK takes one integer and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs the calling thread before all ordinary ones, where the system allows that.
pub fn run_first() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread, and the parameters live until the call returns.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until one of `files` can be read, or has failed, for at most `wait` (`None`: forever), and tells which.
pub fn wait_readable<const N: usize>(
    files: [BorrowedFd<'_>; N],
    wait: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled =
        files.map(|file| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let wait = wait.map(|wait| libc::timespec {
        tv_sec: wait.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: wait.subsec_nanos().into(),
    });
    let wait = wait.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and the timespec, if there is one, live until the call returns, and the length is the array's.
    match unsafe { libc::ppoll(polled.as_mut_ptr(), N as libc::nfds_t, wait, std::ptr::null()) } {
        0.. => Ok(polled.map(|file| file.revents != 0)),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
            error => Err(error),
        },
    }
}
