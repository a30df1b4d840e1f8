//! What is drawn, as wide and high as there is room.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Row, Table, Widget};
use relay_userspace::identity::NodeId;
use relay_userspace::relay::activity::{Activity, SessionActivity};
use relay_userspace::relay::report::STREAM;

use super::amounts::{bytes, packets};
use super::choices::{Choices, Order, Page};
use super::trends::{self, Trends};
use crate::output;

/// All columns fit into this.
pub const WIDTH: u16 = 80;

/// Rows of sessions that are printed at most where there is no screen.
const MOST_PRINTED: usize = 500;

/// The lines above the sessions.
const HEAD: u16 = 6;

/// What is known and chosen.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// What happened last.
    pub activity: &'a Activity,
    /// And before.
    pub trends: &'a Trends,
    /// What of it is shown.
    pub choices: &'a Choices,
    /// Why it is old, if it is.
    pub fault: Option<&'a str>,
}

impl Widget for View<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let keys = area.bottom().saturating_sub(1);
        self.draw(Rect { height: area.height.saturating_sub(1), ..area }, buffer);
        put(&self.keys(self.page(area.height)), keys, area, buffer);
    }
}

impl View<'_> {
    /// It as lines of text, with as many sessions as there are, up to a bound, and without keys.
    pub fn text(&self, width: u16) -> Vec<String> {
        let rows = self.activity.sessions.len().min(MOST_PRINTED);
        let height = u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(HEAD + 1);
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        self.draw(area, &mut buffer);
        lines(&buffer)
    }

    /// What of the sessions a screen of this height has room for.
    pub fn page(&self, height: u16) -> Page {
        let sessions = self.choices.apply(&self.activity.sessions).len();
        Page { sessions, room: usize::from(height.saturating_sub(HEAD + 2)) }
    }

    fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let shown = self.choices.apply(&self.activity.sessions);
        let page = Page { sessions: shown.len(), room: usize::from(area.height.saturating_sub(HEAD + 1)) };
        let mut head = self.head();
        head.push(self.sessions_line(page));
        for (line, y) in head.iter().zip(area.y..) {
            put(line, y, area, buffer);
        }
        let top = HEAD.min(area.height);
        let below = Rect { y: area.y + top, height: area.height - top, ..area };
        let columns = Column::fitting(area.width);
        let widths = Column::widths(&columns, area.width);
        let header = columns.iter().map(|column| column.aligned(column.title().to_owned()));
        let rows = shown.into_iter().skip(self.choices.first(page)).take(page.room).map(|session| {
            let row =
                Row::new(columns.iter().map(|column| column.aligned(column.text(session, self.trends))));
            if session.limited_packets_per_s > 0 { row.style(Style::new().yellow()) } else { row }
        });
        let table = Table::new(rows, widths.into_iter().map(Constraint::Length))
            .header(Row::new(header).style(Style::new().reversed()))
            .column_spacing(1);
        Widget::render(table, below, buffer);
    }

    fn head(&self) -> Vec<Line<'_>> {
        let Activity { datapath, agents, table_sessions, table_max_sessions, .. } = self.activity;
        let s = if *agents == 1 { "" } else { "s" };
        let draining = if self.activity.draining { "; draining" } else { "" };
        let relay = format!(
            "{datapath}; {agents} agent{s}; {table_sessions} of {table_max_sessions} sessions{draining}"
        );
        let relaying = format!(
            "{}/s; packets/s: kernel {}, userspace {}",
            bytes(self.activity.bytes_per_s),
            packets(self.activity.kernel_packets_per_s),
            packets(self.activity.userspace_packets_per_s)
        );
        let dropped = self.activity.dropped.iter();
        let dropped = dropped.map(|dropped| counted(&dropped.reason, dropped.packets_per_s, dropped.packets));
        let refused = self.activity.refused.iter();
        let refused = refused.map(|refused| counted(&refused.reason, refused.times_per_s, refused.times));
        vec![
            titled("Relay", relay),
            titled("Relaying", relaying),
            titled("Dropped", listed(dropped.collect())),
            titled("Refused", listed(refused.collect())),
        ]
    }

    fn sessions_line(&self, page: Page) -> Line<'_> {
        if let Some(fault) = self.fault {
            return Line::from(format!("No answer, this is old: {fault}")).bold().red();
        }
        let Choices { order, reversed, filter, .. } = self.choices;
        let (all, Page { sessions: shown, room }) = (self.activity.sessions.len(), page);
        let drawn = match self.choices.first(page) {
            first if page.overflows() && room > 0 => format!("{} to {}", first + 1, first + room),
            _ => shown.min(room).to_string(),
        };
        let mut text = format!("{drawn} of {all}, by {}", order.name());
        if *reversed {
            text.push_str(", the other way round");
        }
        if !filter.is_empty() {
            text.push_str(&format!("; {shown} with {filter:?}"));
        }
        titled("Sessions", text)
    }

    fn keys(&self, page: Page) -> Line<'_> {
        if self.choices.typing {
            let help = "   Enter keeps, Esc clears".dim();
            return Line::from(vec![Span::from(format!("/{}_", self.choices.filter)), help]);
        }
        let mut text = match page.overflows() {
            true => "q quit  / filter  Up Down PgUp PgDn scroll  sort:",
            false => "q quit   / filter   sort (again: other way):",
        }
        .to_owned();
        for order in Order::ALL {
            let name = order.name();
            text.push_str(&format!(" {} {name} ", name.get(..1).unwrap_or_default()));
        }
        Line::from(text).dim()
    }
}

fn titled(title: &'static str, text: String) -> Line<'static> {
    Line::from(vec![Span::from(format!("{title:<9}: ")).bold(), Span::from(text)])
}

fn counted(reason: &str, per_s: u64, total: u64) -> String {
    format!("{reason} {}/s of {}", packets(per_s), packets(total))
}

fn listed(counts: Vec<String>) -> String {
    if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") }
}

/// Draws a line, if it is within `area`.
fn put(line: &Line, y: u16, area: Rect, buffer: &mut Buffer) {
    if (area.top()..area.bottom()).contains(&y) {
        buffer.set_line(area.x, y, line, area.width);
    }
}

/// What a buffer shows, without blanks at the ends.
fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width).max(1);
    let line = |cells: &[ratatui::buffer::Cell]| {
        let text: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.trim_end().to_owned()
    };
    buffer.content.chunks(width).map(line).collect()
}

/// A column of the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Rate,
    Trend,
    Limit,
    Limited,
    Path,
    Age,
    Session,
    Connector,
    Target,
}

impl Column {
    /// From left to right.
    const ALL: [Column; 9] = {
        use Column::{Age, Connector, Limit, Limited, Path, Rate, Session, Target, Trend};
        [Rate, Trend, Limit, Limited, Path, Age, Session, Connector, Target]
    };

    /// Those that a narrow terminal has room for; what matters most is kept longest.
    const BY_IMPORTANCE: [Column; 9] = {
        use Column::{Age, Connector, Limit, Limited, Path, Rate, Session, Target, Trend};
        [Rate, Target, Connector, Limited, Limit, Path, Session, Age, Trend]
    };

    fn title(self) -> &'static str {
        match self {
            Column::Rate => "RATE/s",
            Column::Trend => "TREND",
            Column::Limit => "LIMIT/s",
            Column::Limited => "LIMITED/s",
            Column::Path => "PATH",
            Column::Age => "AGE",
            Column::Session => "SESSION",
            Column::Connector => "CONNECTOR",
            Column::Target => "TARGET",
        }
    }

    fn width(self) -> u16 {
        match self {
            Column::Rate | Column::Limit | Column::Age => 7,
            Column::Trend => trends::LENGTH as u16,
            Column::Limited | Column::Path | Column::Connector => 9,
            Column::Session | Column::Target => 8,
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Column::Rate | Column::Limit | Column::Limited | Column::Age)
    }

    fn aligned(self, text: String) -> Cell<'static> {
        let line = Line::from(text);
        Cell::from(if self.is_number() { line.right_aligned() } else { line })
    }

    fn text(self, session: &SessionActivity, trends: &Trends) -> String {
        match self {
            Column::Rate => bytes(session.bytes_per_s),
            Column::Trend => trends.bars(&session.session),
            Column::Limit => match session.rate_bytes_per_s {
                0 => "none".to_owned(),
                rate => bytes(rate),
            },
            Column::Limited => packets(session.limited_packets_per_s),
            Column::Path => match &session.state {
                state if state != "paired" => state.clone(),
                _ if session.path == STREAM => "stream".to_owned(),
                _ => session.forwarded_by.clone(),
            },
            Column::Age => output::seconds(session.age_s),
            Column::Session => session.session.chars().take(8).collect(),
            Column::Connector => agent(&session.connector, &session.connector_name),
            Column::Target => agent(&session.target, &session.target_name),
        }
    }

    /// The columns that have room within `width`, from left to right.
    fn fitting(width: u16) -> Vec<Column> {
        let mut kept = Vec::new();
        let mut taken = 0;
        for column in Column::BY_IMPORTANCE {
            let gap = u16::from(!kept.is_empty());
            if taken + gap + column.width() > width {
                break;
            }
            taken += gap + column.width();
            kept.push(column);
        }
        Column::ALL.into_iter().filter(|column| kept.contains(column)).collect()
    }

    /// Their widths: what is left is for the agents' names.
    fn widths(columns: &[Column], width: u16) -> Vec<u16> {
        let taken: u16 = columns.iter().map(|column| column.width() + 1).sum();
        let left = if width > WIDTH { (width + 1).saturating_sub(taken) } else { 0 };
        let widened = |column: &Column| match column {
            Column::Connector => column.width() + left / 2,
            Column::Target => column.width() + left.div_ceil(2),
            _ => column.width(),
        };
        columns.iter().map(widened).collect()
    }
}

/// The first digits of an agent's id, and what it calls itself.
fn agent(id: &str, name: &str) -> String {
    let digits: String = id.trim_start_matches(NodeId::PREFIX).chars().take(8).collect();
    format!("{digits} {name}")
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{Event, KeyCode};
    use relay_userspace::relay::activity::{Dropped, Refused};

    use super::*;

    fn activity() -> Activity {
        let session = |digit: &str, bytes_per_s, limited, forwarded_by: &str| SessionActivity {
            session: digit.repeat(32),
            connector: format!("atlas_{}", "70b499d0".repeat(8)),
            connector_name: "alice of a rather long name".to_owned(),
            target: format!("atlas_{}", "0f1e2d3c".repeat(8)),
            state: "paired".to_owned(),
            forwarded_by: forwarded_by.to_owned(),
            bytes_per_s,
            rate_bytes_per_s: 1_048_576,
            limited_packets_per_s: limited,
            age_s: 7199,
            ..SessionActivity::default()
        };
        Activity {
            datapath: "xdp-native".to_owned(),
            agents: 12,
            table_sessions: 3,
            table_max_sessions: 1024,
            bytes_per_s: 12_345_678,
            kernel_packets_per_s: 8512,
            userspace_packets_per_s: 12,
            dropped: vec![Dropped { reason: "limited".to_owned(), packets_per_s: 7, packets: 123_456 }],
            refused: vec![Refused { reason: "target_absent".to_owned(), times_per_s: 0, times: 3 }],
            sessions: vec![
                session("1", 1_048_000, 7, "kernel"),
                session("2", 0, 0, "userspace"),
                SessionActivity { state: "half".to_owned(), ..session("3", 0, 0, "nobody") },
                SessionActivity {
                    path: STREAM.to_owned(),
                    rate_bytes_per_s: 0,
                    ..session("4", 5000, 0, "userspace")
                },
            ],
            ..Activity::default()
        }
    }

    fn drawn([width, height]: [u16; 2], choices: &Choices, fault: Option<&str>) -> Vec<String> {
        let (activity, mut trends) = (activity(), Trends::default());
        trends.note(&activity);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let view = View { activity: &activity, trends: &trends, choices, fault };
        terminal.draw(|frame| frame.render_widget(view, frame.area())).unwrap();
        lines(terminal.backend().buffer())
    }

    #[test]
    fn eighty_columns_have_room_for_all_that_there_is_to_tell() {
        let drawn = drawn([80, 12], &Choices::default(), None);
        let expected = [
            "Relay    : xdp-native; 12 agents; 3 of 1024 sessions",
            "Relaying : 12.3 MB/s; packets/s: kernel 8.51k, userspace 12",
            "Dropped  : limited 7/s of 123k",
            "Refused  : target_absent 0/s of 3",
            "Sessions : 4 of 4, by rate",
            "",
            " RATE/s TREND    LIMIT/s LIMITED/s PATH          AGE SESSION  CONNECTOR TARGET",
            "1.05 MB        █ 1.05 MB         7 kernel    119 min 11111111 70b499d0  0f1e2d3c",
            "5.00 kB        █    none         0 stream    119 min 44444444 70b499d0  0f1e2d3c",
            "    0 B          1.05 MB         0 userspace 119 min 22222222 70b499d0  0f1e2d3c",
            "    0 B          1.05 MB         0 half      119 min 33333333 70b499d0  0f1e2d3c",
            "q quit   / filter   sort (again: other way): r rate  l limited  a age  i id",
        ];
        assert_eq!(drawn, expected);
    }

    #[test]
    fn a_narrow_terminal_keeps_what_matters_most_and_a_wide_one_has_names() {
        let titles = |width| drawn([width, 12], &Choices::default(), None)[6].clone();
        assert!(!titles(79).contains("TREND") && titles(79).contains("AGE"));
        assert_eq!(titles(40), " RATE/s LIMITED/s CONNECTOR TARGET");
        assert_eq!(titles(7), " RATE/s");
        let wide = drawn([120, 12], &Choices::default(), None);
        assert!(wide[7].contains("70b499d0 alice of a rather l"), "{}", wide[7]);
    }

    #[test]
    fn no_size_is_too_small_and_none_is_left() {
        for width in 0..90 {
            for height in 0..16 {
                let lines = drawn([width, height], &Choices::default(), Some("gone"));
                assert!(lines.iter().all(|line| line.chars().count() <= usize::from(width)));
            }
        }
    }

    #[test]
    fn what_is_chosen_and_what_is_wrong_is_told() {
        let (order, filter) = (Order::Id, "222".to_owned());
        let choices = Choices { order, reversed: true, filter, typing: true, ..Choices::default() };
        let filtered = drawn([80, 12], &choices, None);
        assert_eq!(filtered[4], "Sessions : 1 of 4, by id, the other way round; 1 with \"222\"");
        assert!(filtered[7].contains("22222222") && filtered[8].is_empty());
        assert_eq!(filtered[11], "/222_   Enter keeps, Esc clears");
        let faulty = drawn([80, 12], &Choices::default(), Some("no daemon"));
        assert_eq!(faulty[4], "No answer, this is old: no daemon");
    }

    #[test]
    fn sessions_that_have_no_room_are_counted() {
        let drawn = drawn([80, 10], &Choices::default(), None);
        assert_eq!(drawn[4], "Sessions : 1 to 2 of 4, by rate");
        assert!(drawn[8].contains("44444444"), "{drawn:?}");
        assert_eq!(
            drawn[9],
            "q quit  / filter  Up Down PgUp PgDn scroll  sort: r rate  l limited  a age  i id"
        );
    }

    #[test]
    fn sessions_that_have_no_room_come_with_the_keys_for_it() {
        let (activity, trends, mut choices) = (activity(), Trends::default(), Choices::default());
        let view = |choices| View { activity: &activity, trends: &trends, choices, fault: None };
        let page = view(&choices).page(10);
        assert_eq!((page.sessions, page.room), (4, 2));
        choices.take(&Event::Key(KeyCode::PageDown.into()), page);
        let shown = drawn([80, 10], &choices, None);
        assert_eq!(shown[4], "Sessions : 3 to 4 of 4, by rate");
        assert!(shown[7].contains("22222222") && shown[8].contains("33333333"), "{shown:?}");
        let larger = drawn([80, 12], &choices, None);
        assert_eq!(larger[4], "Sessions : 4 of 4, by rate", "with room for all it is as it was");
        assert!(larger[7].contains("11111111") && larger[11].contains("other way"), "{larger:?}");
        // The last key was pressed when there was more.
        choices.filter = "44444444".to_owned();
        let filtered = drawn([80, 10], &choices, None);
        assert!(filtered[7].contains("44444444"), "{filtered:?}");
    }

    #[test]
    fn the_page_of_net_top_shows_it_as_it_is() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/top.md");
        let page = std::fs::read_to_string(page).unwrap();
        let capture: Vec<&str> = page.split("```").nth(1).unwrap().lines().skip(1).collect();
        let now = drawn([80, 12], &Choices::default(), None);
        assert_eq!((capture[6], *capture.last().unwrap()), (now[6].as_str(), now[11].as_str()));
        for (shown, now) in capture.iter().zip(&now).take(5) {
            assert_eq!(shown.split(" : ").next(), now.split(" : ").next());
        }
        assert!(capture.len() <= 24 && capture.iter().all(|line| line.chars().count() <= 80));
    }
}
