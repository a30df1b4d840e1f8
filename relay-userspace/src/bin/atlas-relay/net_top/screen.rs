//! The terminal while the view is shown: taken as a whole, and given back as it was.

use anyhow::Context as _;
use ratatui::DefaultTerminal;
use ratatui::crossterm::terminal;

use super::view::{View, WIDTH};

/// The taken terminal. It is given back when this is dropped, and before a panic is told.
pub struct Screen(DefaultTerminal);

impl Screen {
    /// Takes it.
    pub fn take() -> anyhow::Result<Screen> {
        ratatui::try_init().map(Screen).context("taking the terminal").inspect_err(|_| ratatui::restore())
    }

    /// Shows `view` instead of what is shown.
    pub fn draw(&mut self, view: View) -> anyhow::Result<()> {
        self.0.draw(|frame| frame.render_widget(view, frame.area())).context("writing to the terminal")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _gone = self.0.show_cursor();
        // A panic has given it back already, and twice would put the cursor over what it told.
        if !std::thread::panicking() {
            let _gone = ratatui::try_restore();
        }
    }
}

/// The terminal's height in lines.
pub fn height() -> u16 {
    terminal::size().map_or(0, |(_, height)| height)
}

/// The terminal's width in characters.
pub fn width() -> u16 {
    terminal::size().map_or(WIDTH, |(width, _)| width)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::terminal::Terminal;
    use super::*;

    /// In the program of tests that is run in a terminal.
    const PANICS: &str = "RELAY_TEST_PANICS_WITH_THE_SCREEN_TAKEN";

    #[test]
    fn a_panic_gives_the_terminal_back_and_is_told_there() {
        if std::env::var_os(PANICS).is_some() {
            let _screen = Screen::take().unwrap();
            panic!("with the screen taken");
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "net_top::screen::tests::a_panic_gives_the_terminal_back_and_is_told_there"]);
        command.args(["--nocapture", "--test-threads=1"]).env(PANICS, "1");
        // A long one would push what is looked for off the screen.
        command.env("RUST_BACKTRACE", "0");
        let mut terminal = Terminal::start(&command, [80, 24]);
        assert_eq!(terminal.ended(), Some(101), "{}", terminal.text());
        terminal.until_given_back();
        terminal.until_seen("the panic", |text| text.contains("with the screen taken"));
    }
}
