//! What whoever looks has chosen by keys: the order of the sessions, which of them are shown, and from which on.

use std::cmp::Ordering;

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use relay_userspace::relay::activity::SessionActivity;

/// What sessions are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Bytes per second, the most first.
    #[default]
    Rate,
    /// Packets dropped for the limit, the most first.
    Limited,
    /// Age, the oldest first.
    Age,
    /// The session's id.
    Id,
}

impl Order {
    /// All, in the order of the help line.
    pub const ALL: [Order; 4] = [Order::Rate, Order::Limited, Order::Age, Order::Id];

    /// Its name, which begins with its key.
    pub fn name(self) -> &'static str {
        match self {
            Order::Rate => "rate",
            Order::Limited => "limited",
            Order::Age => "age",
            Order::Id => "id",
        }
    }

    fn compare(self, one: &SessionActivity, other: &SessionActivity) -> Ordering {
        match self {
            Order::Rate => other.bytes_per_s.cmp(&one.bytes_per_s),
            Order::Limited => (other.limited_packets_per_s, other.limited_packets)
                .cmp(&(one.limited_packets_per_s, one.limited_packets)),
            Order::Age => other.age_s.cmp(&one.age_s),
            Order::Id => Ordering::Equal,
        }
        // Rows of the same rate keep their places.
        .then_with(|| one.session.cmp(&other.session))
    }
}

/// Longest filter, in characters: an id is 70.
const MAX_FILTER: usize = 80;

/// What is chosen.
#[derive(Debug, Default)]
pub struct Choices {
    /// What sessions are ordered by.
    pub order: Order,
    /// The other way round.
    pub reversed: bool,
    /// What a session's id, or the id or name of one of its agents, contains, in capitals or not.
    pub filter: String,
    /// Whether the filter is being typed.
    pub typing: bool,
    /// How many sessions stand above the first that is drawn, as far as there are so many.
    pub above: usize,
}

/// What of the sessions there is room for.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Sessions that are shown, if not all at once.
    pub sessions: usize,
    /// Sessions that there is room for.
    pub room: usize,
}

impl Page {
    /// How many sessions stand above the first line at most: below it are as many as there is room for.
    fn furthest(self) -> usize {
        self.sessions.saturating_sub(self.room)
    }

    /// Whether some have no room.
    pub fn overflows(self) -> bool {
        self.furthest() > 0
    }
}

/// What comes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The view stays.
    Stay,
    /// It is over.
    Leave,
}

impl Choices {
    /// Takes a key. `page` is what it was pressed at the sight of.
    pub fn take(&mut self, event: &Event, page: Page) -> Outcome {
        let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else {
            return Outcome::Stay;
        };
        // The terminal sends no signal while the screen is taken.
        let control = modifiers.contains(KeyModifiers::CONTROL);
        if control && *code == KeyCode::Char('c') {
            return Outcome::Leave;
        }
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc if self.typing || !self.filter.is_empty() => {
                self.typing = false;
                self.filter.clear();
                self.above = 0;
            }
            KeyCode::Backspace if self.typing => {
                self.filter.pop();
                self.above = 0;
            }
            KeyCode::Down => self.above = self.first(page).saturating_add(1).min(page.furthest()),
            KeyCode::Up => self.above = self.first(page).saturating_sub(1),
            KeyCode::PageDown => self.above = self.first(page).saturating_add(page.room).min(page.furthest()),
            KeyCode::PageUp => self.above = self.first(page).saturating_sub(page.room),
            KeyCode::Home => self.above = 0,
            KeyCode::End => self.above = page.furthest(),
            KeyCode::Char(_) if control => {}
            KeyCode::Char(c) if self.typing => self.lengthen(*c),
            KeyCode::Char('q') | KeyCode::Esc => return Outcome::Leave,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char(c) => self.order_by(*c),
            _ => {}
        }
        Outcome::Stay
    }

    fn lengthen(&mut self, c: char) {
        if !c.is_control() && self.filter.chars().count() < MAX_FILTER {
            self.filter.push(c);
            self.above = 0;
        }
    }

    /// The key of the order that there is turns it round.
    fn order_by(&mut self, key: char) {
        if let Some(order) = Order::ALL.into_iter().find(|order| order.name().starts_with(key)) {
            self.reversed = order == self.order && !self.reversed;
            self.order = order;
            self.above = 0;
        }
    }

    /// The place of the first session that is drawn. There may be fewer than when the last key was pressed, or more room.
    pub fn first(&self, page: Page) -> usize {
        self.above.min(page.furthest())
    }

    /// Those that are shown, in their order.
    pub fn apply<'a>(&self, sessions: &'a [SessionActivity]) -> Vec<&'a SessionActivity> {
        let wanted = self.filter.to_lowercase();
        let fits = |session: &&SessionActivity| {
            let SessionActivity { session, connector, connector_name, target, target_name, .. } = session;
            let texts = [session, connector, connector_name, target, target_name];
            texts.iter().any(|text| text.to_lowercase().contains(&wanted))
        };
        let mut shown: Vec<&SessionActivity> = sessions.iter().filter(fits).collect();
        shown.sort_by(|one, other| {
            let order = self.order.compare(one, other);
            if self.reversed { order.reverse() } else { order }
        });
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Vec<SessionActivity> {
        let session = |id: &str, bytes_per_s, limited, age_s, target: &str| SessionActivity {
            session: id.to_owned(),
            bytes_per_s,
            limited_packets_per_s: limited,
            age_s,
            connector: "atlas_70b4".to_owned(),
            target: target.to_owned(),
            target_name: format!("Name-{id}"),
            ..SessionActivity::default()
        };
        vec![
            session("c3", 10, 5, 1, "atlas_aaaa"),
            session("a1", 30, 0, 3, "atlas_bbbb"),
            session("b2", 30, 9, 2, "atlas_aabb"),
        ]
    }

    /// Room for all.
    const PAGE: Page = Page { sessions: 3, room: 20 };

    fn press(choices: &mut Choices, keys: &str) -> Outcome {
        let key = |c: char| match c {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            '\u{8}' => KeyCode::Backspace,
            c => KeyCode::Char(c),
        };
        keys.chars().fold(Outcome::Stay, |_, c| choices.take(&Event::Key(key(c).into()), PAGE))
    }

    fn shown(choices: &Choices) -> Vec<String> {
        choices.apply(&sessions()).iter().map(|session| session.session.clone()).collect()
    }

    #[test]
    fn each_order_has_its_key_and_the_same_key_again_turns_it_round() {
        let mut choices = Choices::default();
        assert_eq!(shown(&choices), ["a1", "b2", "c3"], "by rate, and of the same by id");
        for (key, expected) in [
            ("l", ["b2", "c3", "a1"]),
            ("l", ["a1", "c3", "b2"]),
            ("a", ["a1", "b2", "c3"]),
            ("a", ["c3", "b2", "a1"]),
            ("i", ["a1", "b2", "c3"]),
            ("i", ["c3", "b2", "a1"]),
            ("r", ["a1", "b2", "c3"]),
            ("x", ["a1", "b2", "c3"]),
        ] {
            press(&mut choices, key);
            assert_eq!(shown(&choices), expected, "{key}");
        }
    }

    #[test]
    fn a_filter_is_typed_and_keeps_what_contains_it() {
        let mut choices = Choices::default();
        press(&mut choices, "/aA");
        assert_eq!(shown(&choices), ["b2", "c3"], "it has effect while it is typed");
        assert_eq!(press(&mut choices, "q"), Outcome::Stay, "no key but a letter now");
        assert!(shown(&choices).is_empty());
        press(&mut choices, "\u{8}\n");
        assert!(!choices.typing && choices.filter == "aA");
        press(&mut choices, "i");
        assert_eq!((choices.order, shown(&choices).len()), (Order::Id, 2));
        press(&mut choices, "\u{1b}/name-C3\n");
        assert_eq!(shown(&choices), ["c3"], "by name");
        press(&mut choices, "\u{1b}");
        assert_eq!(shown(&choices).len(), 3);
    }

    #[test]
    fn a_filter_has_an_end_and_takes_no_control_characters() {
        let mut choices = Choices::default();
        press(&mut choices, "/\u{7}\u{0}");
        assert_eq!(choices.filter, "");
        press(&mut choices, &"é".repeat(1000));
        assert_eq!(choices.filter.chars().count(), MAX_FILTER);
    }

    #[test]
    fn pages_go_as_far_as_the_last_one_is_full_and_no_key_is_pressed_in_vain_afterwards() {
        let mut choices = Choices::default();
        let page = Page { sessions: 25, room: 10 };
        for (key, first) in [
            (KeyCode::Up, 0),
            (KeyCode::Down, 1),
            (KeyCode::PageDown, 11),
            (KeyCode::PageDown, 15),
            (KeyCode::PageDown, 15),
            (KeyCode::Down, 15),
            (KeyCode::Up, 14),
            (KeyCode::PageUp, 4),
            (KeyCode::PageUp, 0),
            (KeyCode::End, 15),
            (KeyCode::Home, 0),
        ] {
            assert_eq!(choices.take(&Event::Key(key.into()), page), Outcome::Stay);
            assert_eq!(choices.first(page), first, "{key:?}");
        }
    }

    #[test]
    fn another_order_or_filter_begins_at_the_top_and_fewer_sessions_move_the_page_up() {
        let page = Page { sessions: 25, room: 10 };
        let mut choices = Choices::default();
        let mut at_the_end_then = |keys: &str| {
            choices.take(&Event::Key(KeyCode::End.into()), page);
            assert_eq!(choices.first(page), 15);
            press(&mut choices, keys);
            choices.first(page)
        };
        assert_eq!(at_the_end_then("x"), 15, "no key of anything");
        for keys in ["a", "a", "/b", "\u{8}", "\u{1b}"] {
            assert_eq!(at_the_end_then(keys), 0, "{keys:?}");
        }
        choices.take(&Event::Key(KeyCode::End.into()), page);
        for (sessions, room, first) in
            [(12, 10, 2), (10, 10, 0), (3, 10, 0), (25, 30, 0), (25, 0, 15), (0, 0, 0)]
        {
            let page = Page { sessions, room };
            assert_eq!((choices.first(page), page.overflows()), (first, sessions > room), "{page:?}");
        }
    }

    #[test]
    fn q_escape_and_control_c_leave() {
        for keys in ["q", "\u{1b}", "/a\u{1b}q"] {
            assert_eq!(press(&mut Choices::default(), keys), Outcome::Leave, "{keys:?}");
        }
        let interrupt = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        for mut choices in [Choices::default(), Choices { typing: true, ..Choices::default() }] {
            assert_eq!(choices.take(&interrupt, PAGE), Outcome::Leave);
        }
        assert_eq!(Choices::default().take(&Event::Resize(0, 0), PAGE), Outcome::Stay);
    }
}
