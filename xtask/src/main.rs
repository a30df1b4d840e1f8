//! `cargo xtask`: the index of what can be done in this repository.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use xtask::demo::{self, Datapath};
use xtask::lab::interactive::Line;
use xtask::setup::{self, Consent, Purpose};
use xtask::test::{self, Selection};
use xtask::workspace::Workspace;
use xtask::{bench, build, ci, dist, interrupt, lab, load, terminal, tidy, verifier};

/// The tasks of this repository. What a task needs and the machine lacks is listed, then installed.
#[derive(Parser)]
#[command(name = "cargo xtask", after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo                          see it work: relay, two agents behind NAT, real traffic (root)
  cargo xtask demo --datapath xdp-native --report demo.json
  cargo xtask test                          every test, set-up included (root for the privileged ones)
  cargo xtask test -- falls_silent          only tests whose name contains `falls_silent`
  cargo xtask test --no-install             print what would be installed
  cargo xtask build                         target/release/atlas-relay with the XDP program inside
  cargo xtask dist                          tarball, Debian package and checksums in target/dist
  cargo xtask lab --delay 20ms --loss 0.1%  the demo's network, with agent 1 far away
  cargo xtask bench                         measure it beside others, some six minutes (root)
  cargo xtask load --interface eth0         attach the XDP program, for development";

#[derive(Subcommand)]
enum Task {
    /// Builds the XDP program, then the relay with the program inside (target/release/atlas-relay).
    Build {
        #[command(flatten)]
        install: Install,
    },
    /// Builds, then makes a tarball, a Debian package and SHA256SUMS (target/dist).
    Dist {
        #[command(flatten)]
        install: Install,
    },
    /// Builds, then attaches the XDP program to an interface through the relay's own `xdp load`.
    #[command(after_help = "Example:\n  cargo xtask load --interface eth0 --mode generic")]
    Load {
        /// The interface, for example eth0.
        #[arg(long)]
        interface: String,
        /// `native` (in the driver) or `generic` (any interface, slower).
        #[arg(long)]
        mode: Option<Mode>,
    },
    /// Detaches the XDP program from an interface through the relay's own `xdp unload`.
    #[command(after_help = "Example:\n  cargo xtask unload --interface eth0")]
    Unload {
        /// The interface it was attached to.
        #[arg(long)]
        interface: String,
    },
    /// Builds, runs a relay and two agents behind NAT in network namespaces, moves real traffic, prints what happened.
    ///
    /// Without root it runs the userspace datapath on loopback. RELAY_BIN may name a binary that is built already.
    #[command(after_help = "Example:\n  cargo xtask demo --datapath xdp-native --report demo.json")]
    Demo {
        /// Writes the same as JSON; docs/lab.md describes its fields.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// Only this datapath; may be given several times.
        #[arg(long)]
        datapath: Vec<Datapath>,
    },
    /// Brings up the network of the demo to look around in, until Ctrl-C; docs/lab.md says what to do there.
    #[command(after_help = "Example:\n  cargo xtask lab --delay 20ms --jitter 2ms --loss 0.1%")]
    Lab {
        #[command(flatten)]
        line: Line,
    },
    /// Sets up what is missing, builds, and runs every test.
    Test {
        #[command(flatten)]
        install: Install,
        /// The long runs as well.
        #[arg(long)]
        long: bool,
        /// Only tests whose name contains this.
        #[arg(last = true)]
        filter: Option<String>,
    },
    /// Builds, and prints what the kernel makes of the XDP program (root): instructions, machine code, stack.
    ///
    /// Fails if it has grown beyond what stands in relay-ebpf/verifier.toml, as `cargo xtask test` does.
    #[command(after_help = "Example:\n  cargo xtask verifier --record")]
    Verifier {
        #[command(flatten)]
        install: Install,
        /// Writes the file instead.
        #[arg(long)]
        record: bool,
    },
    /// Builds, and measures the relay beside what else does its work (root); docs/performance.md says what is what.
    #[command(after_help = "Example:\n  cargo xtask bench --quick\n  cargo xtask bench --report bench.json")]
    Bench {
        #[command(flatten)]
        install: Install,
        #[command(flatten)]
        selection: bench::Selection,
    },
    /// Checks rules of the code's order that no compiler checks: imports, names, top-level parts.
    Tidy,
    /// What continuous integration runs: format, lints, the library's pages, tests, packages, demo, benchmark.
    Ci,
}

#[derive(clap::Args)]
struct Install {
    /// Prints the commands that would install what is missing, and fails.
    #[arg(long)]
    no_install: bool,
}

impl Install {
    fn consent(&self) -> Consent {
        if self.no_install { Consent::ShowCommands } else { Consent::Install }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Native,
    Generic,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Native => "native",
            Mode::Generic => "generic",
        }
    }
}

fn main() -> ExitCode {
    terminal::start_clock();
    let arguments = Arguments::parse();
    interrupt::install();
    match run(arguments.task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Build { install } => {
            let built = build::build(&Workspace::find()?, Purpose::Build, install.consent())?;
            terminal::result(format!("built {}", built.relay_binary.display()));
            Ok(())
        }
        Task::Dist { install } => {
            let made = dist::run(&Workspace::find()?, install.consent())?;
            for file in [made.tarball, made.deb, made.checksums] {
                terminal::result(format!("made {}", file.display()));
            }
            Ok(())
        }
        Task::Load { interface, mode } => load::load(&Workspace::find()?, &interface, mode.map(Mode::name)),
        Task::Unload { interface } => load::unload(&Workspace::find()?, &interface),
        Task::Demo { report, datapath } => demo::run(&datapath, report.as_deref()),
        Task::Lab { line } => {
            setup::provide_lab_programs()?;
            lab::interactive::show(line)
        }
        Task::Test { install, long, filter } => test::run(
            &Workspace::find()?,
            install.consent(),
            &Selection { long, filter, nothing_skips: false },
        ),
        Task::Verifier { install, record } => verifier::run(&Workspace::find()?, install.consent(), record),
        Task::Bench { install, selection } => bench::run(&Workspace::find()?, install.consent(), &selection),
        Task::Tidy => tidy::check(&Workspace::find()?),
        Task::Ci => ci::run(&Workspace::find()?),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_tasks_with_options_of_their_own_show_an_example() {
        let arguments = Arguments::command();
        for name in ["lab", "load", "unload", "demo", "verifier", "bench"] {
            let task = arguments.find_subcommand(name).expect(name);
            let help = task.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("Example:\n  cargo xtask {name}")), "{name}: {help}");
        }
    }
}
