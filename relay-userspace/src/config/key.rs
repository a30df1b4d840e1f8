//! What is known of a key of the configuration file: its name, what it takes, whose it is, and when a change of it takes
//! effect. The keys themselves are in [`super::keys`].

use std::fmt;

/// A key whose value has the form `F`.
#[derive(Debug)]
pub struct Key<F> {
    /// With its table: `network.port`.
    pub name: &'static str,
    /// On what it has an effect.
    pub of: Of,
    /// When a change takes effect.
    pub when: When,
    /// What it takes.
    pub form: F,
}

/// On what a key has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Relays.
    Relay,
    /// Agents.
    Agent,
    /// Relays and agents.
    Both,
    /// Nothing here, and why: a key of upstream's.
    Nothing(&'static str),
}

/// When a change of a key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// With SIGHUP or `config reload`.
    Live,
    /// When the daemon starts.
    Restart,
}

/// A number.
#[derive(Debug)]
pub struct Integer {
    /// What is counted, and its unit, for "expected ...".
    pub what: &'static str,
    /// The least.
    pub min: i64,
    /// The most.
    pub max: i64,
    /// What it is unless it is written.
    pub default: i64,
}

/// A number whose default follows from another key.
#[derive(Debug)]
pub struct Derived {
    /// What is counted, and its unit, for "expected ...".
    pub what: &'static str,
    /// The least.
    pub min: i64,
    /// The most.
    pub max: i64,
    /// How the default follows.
    pub default: &'static str,
}

/// True or false.
#[derive(Debug)]
pub struct Boolean {
    /// What it is unless it is written.
    pub default: bool,
}

/// A text.
#[derive(Debug)]
pub struct Text {
    /// What it names, for "expected ...".
    pub what: &'static str,
    /// What it is unless it is written, for people.
    pub default: &'static str,
}

/// A list of texts, empty unless it is written.
#[derive(Debug)]
pub struct List {
    /// What its texts name, for "expected a list of ...".
    pub of: &'static str,
    /// A list as it is written.
    pub example: &'static str,
    /// What it means that nothing is in it.
    pub empty: &'static str,
}

/// Tables under one name, `[[agent.allow]]`. None unless they are written. Their keys are keys of their own.
#[derive(Debug)]
pub struct Tables {
    /// What has to be in one, for "expected ...".
    pub with: &'static str,
    /// What it means that there are none.
    pub empty: &'static str,
}

/// A key of whatever form.
#[derive(Clone, Copy, Debug)]
pub enum AnyKey {
    /// A number.
    Integer(&'static Key<Integer>),
    /// A number whose default follows from another key.
    Derived(&'static Key<Derived>),
    /// True or false.
    Boolean(&'static Key<Boolean>),
    /// A text.
    Text(&'static Key<Text>),
    /// A list of texts.
    List(&'static Key<List>),
    /// Tables.
    Tables(&'static Key<Tables>),
}

impl AnyKey {
    /// With its table.
    pub fn name(self) -> &'static str {
        match self {
            AnyKey::Integer(key) => key.name,
            AnyKey::Derived(key) => key.name,
            AnyKey::Boolean(key) => key.name,
            AnyKey::Text(key) => key.name,
            AnyKey::List(key) => key.name,
            AnyKey::Tables(key) => key.name,
        }
    }

    /// On what it has an effect.
    pub fn of(self) -> Of {
        match self {
            AnyKey::Integer(key) => key.of,
            AnyKey::Derived(key) => key.of,
            AnyKey::Boolean(key) => key.of,
            AnyKey::Text(key) => key.of,
            AnyKey::List(key) => key.of,
            AnyKey::Tables(key) => key.of,
        }
    }

    /// When a change takes effect.
    pub fn when(self) -> When {
        match self {
            AnyKey::Integer(key) => key.when,
            AnyKey::Derived(key) => key.when,
            AnyKey::Boolean(key) => key.when,
            AnyKey::Text(key) => key.when,
            AnyKey::List(key) => key.when,
            AnyKey::Tables(key) => key.when,
        }
    }

    /// What it takes, with unit and range, for "expected ...".
    pub fn takes(self) -> String {
        let number = |what: &str, min: i64, max: i64| format!("{what}, {min} to {max}");
        match self {
            AnyKey::Integer(Key { form, .. }) => number(form.what, form.min, form.max),
            AnyKey::Derived(Key { form, .. }) => number(form.what, form.min, form.max),
            AnyKey::Boolean(_) => "true or false".to_owned(),
            AnyKey::Text(Key { form, .. }) => form.what.to_owned(),
            AnyKey::List(Key { form, .. }) => format!("a list of {}, such as {}", form.of, form.example),
            AnyKey::Tables(Key { form, .. }) => format!("tables with {}", form.with),
        }
    }

    /// What it means that nothing is in it, if it can hold several things.
    pub fn empty(self) -> Option<&'static str> {
        match self {
            AnyKey::List(key) => Some(key.form.empty),
            AnyKey::Tables(key) => Some(key.form.empty),
            AnyKey::Integer(_) | AnyKey::Derived(_) | AnyKey::Boolean(_) | AnyKey::Text(_) => None,
        }
    }

    /// What it is unless it is written, for people.
    pub fn default_text(self) -> String {
        match self {
            AnyKey::Integer(Key { form, .. }) => form.default.to_string(),
            AnyKey::Derived(Key { form, .. }) => form.default.to_owned(),
            AnyKey::Boolean(Key { form, .. }) => form.default.to_string(),
            AnyKey::Text(Key { form, .. }) => form.default.to_owned(),
            AnyKey::List(_) | AnyKey::Tables(_) => "none".to_owned(),
        }
    }
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Of::Relay => "relay",
            Of::Agent => "agent",
            Of::Both => "both",
            Of::Nothing(_) => "neither",
        })
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            When::Live => "live",
            When::Restart => "restart",
        })
    }
}
