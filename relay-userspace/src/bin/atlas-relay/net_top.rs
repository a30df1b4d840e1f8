//! `net top`: what the running relay does at the moment, in a terminal.

mod amounts;
mod choices;
mod screen;
#[cfg(test)]
#[path = "../../../tests/terminal/mod.rs"]
mod terminal;
mod trends;
mod view;

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ratatui::crossterm::event::{self, Event};
use relay_userspace::admin::{self, AskError, Request};
use relay_userspace::relay::activity::{Activity, Reading};
use tokio::sync::mpsc;

use crate::args::Top;
use crate::node::StopSignals;
use crate::{node, output};
use choices::{Choices, Outcome};
use screen::Screen;
use trends::Trends;
use view::View;

pub fn run(options: &Top) -> anyhow::Result<()> {
    let every = Duration::from_secs(options.every_s.into());
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    if !options.once && !is_terminal {
        bail!(
            "net top needs a terminal as its input and output: `atlas-relay net top --once` prints one view, \
             `--once --json` one for programs"
        );
    }
    let socket = node::admin_socket()?;
    // Before the screen is taken: whoever cannot ask reads why.
    let first = take(&socket)?;
    if options.once {
        thread::sleep(every);
        return print(&Moment { before: first, now: take(&socket)? }, options.json);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime")?.block_on(watch(socket, first, every))
}

/// A reading, and when it was taken.
struct Taken {
    reading: Reading,
    at: Instant,
}

fn take(socket: &Path) -> Result<Taken, AskError> {
    let reading = Reading {
        status: serde_json::from_value(admin::ask(socket, Request::Status)?)?,
        peers: serde_json::from_value(admin::ask(socket, Request::Peers)?)?,
        sessions: serde_json::from_value(admin::ask(socket, Request::Sessions)?)?,
    };
    Ok(Taken { reading, at: Instant::now() })
}

/// Two readings after one another.
struct Moment {
    before: Taken,
    now: Taken,
}

impl Moment {
    fn activity(&self) -> Activity {
        Activity::between(&self.before.reading, &self.now.reading, self.now.at - self.before.at)
    }
}

fn print(moment: &Moment, json: bool) -> anyhow::Result<()> {
    let activity = moment.activity();
    if json {
        return output::json(&activity);
    }
    let (mut trends, choices) = (Trends::default(), Choices::default());
    trends.note(&activity);
    let view = View { activity: &activity, trends: &trends, choices: &choices, fault: None };
    let width = if io::stdout().is_terminal() { screen::width() } else { view::WIDTH };
    view.text(width).into_iter().for_each(output::line);
    Ok(())
}

/// What the one who draws waits for.
enum Happened {
    Asked(Result<Box<Taken>, AskError>),
    Typed(Event),
    NoMoreInput(io::Error),
}

async fn watch(socket: PathBuf, first: Taken, every: Duration) -> anyhow::Result<()> {
    // Before the screen is taken: none of them may end the process while it is.
    let mut stop = StopSignals::listen()?;
    let mut activity = Activity::between(&first.reading, &first.reading, Duration::ZERO);
    let (mut trends, mut choices, mut fault) = (Trends::default(), Choices::default(), None);
    let mut last = first;
    let mut screen = Screen::take()?;
    let mut happened = begin(socket, every);
    loop {
        let view = View { activity: &activity, trends: &trends, choices: &choices, fault: fault.as_deref() };
        let page = view.page(screen::height());
        screen.draw(view)?;
        let next = tokio::select! {
            next = happened.recv() => next,
            _ = stop.next() => return Ok(()),
        };
        match next {
            Some(Happened::Asked(Ok(now))) => {
                let moment = Moment { before: last, now: *now };
                activity = moment.activity();
                last = moment.now;
                trends.note(&activity);
                fault = None;
            }
            // It may be started again, and the screen is no place to leave because of that.
            Some(Happened::Asked(Err(error))) => fault = Some(error.to_string()),
            Some(Happened::Typed(event)) => {
                if choices.take(&event, page) == Outcome::Leave {
                    return Ok(());
                }
            }
            Some(Happened::NoMoreInput(error)) => return Err(error).context("reading the keyboard"),
            None => return Ok(()),
        }
    }
}

/// Starts asking the relay and reading the keyboard, in a thread each: both block. They end with the process.
fn begin(socket: PathBuf, every: Duration) -> mpsc::Receiver<Happened> {
    let (asked, happened) = mpsc::channel(16);
    let typed = asked.clone();
    thread::spawn(move || {
        loop {
            thread::sleep(every);
            if asked.blocking_send(Happened::Asked(take(&socket).map(Box::new))).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        loop {
            let (last, next) = match event::read() {
                Ok(event) => (false, Happened::Typed(event)),
                Err(error) => (true, Happened::NoMoreInput(error)),
            };
            if typed.blocking_send(next).is_err() || last {
                return;
            }
        }
    });
    happened
}
