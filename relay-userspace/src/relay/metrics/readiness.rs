//! Whether the relay is ready for new sessions, and if not why.

use super::observation::{Observation, Surroundings};

/// Why it is not ready, one reason a line; none: it is.
pub fn obstacles(observation: &Observation, Surroundings { interfaces, .. }: &Surroundings) -> Vec<String> {
    let mut obstacles = Vec::new();
    if let Some(left) = observation.draining {
        obstacles.push(format!("draining: no new sessions are taken; {left} are left"));
    }
    let attached = || interfaces.iter().filter(|(interface, _)| interface.mode.is_some());
    if attached().next().is_some() && attached().all(|(_, counts)| counts.is_none()) {
        let names: Vec<&str> = attached().map(|(interface, _)| &*interface.name).collect();
        obstacles.push(format!(
            "no datapath: every interface that the program was attached to is gone ({}); restart the relay once one is back",
            names.join(", ")
        ));
    }
    obstacles
}

#[cfg(test)]
mod tests {
    use super::super::observation::WatchedInterface;
    use super::*;
    use crate::relay::datapath::LinkCounts;

    fn around(interfaces: &[(&str, bool)]) -> Surroundings {
        let interfaces = interfaces.iter().map(|(name, is_there)| {
            // One that packets only leave by is no way in.
            let mode = (*name != "leaving").then_some("xdp-native");
            let interface = WatchedInterface { index: 1, name: (*name).to_owned(), mode };
            (interface, is_there.then(LinkCounts::default))
        });
        Surroundings { interfaces: interfaces.collect(), ..Surroundings::default() }
    }

    #[test]
    fn a_relay_is_ready_unless_it_drains_or_all_its_interfaces_are_gone() {
        let mut observation = Observation::example();
        assert_eq!(obstacles(&observation, &around(&[])), [""; 0], "without a program it forwards by itself");
        assert_eq!(obstacles(&observation, &around(&[("eth0", false), ("eth1", true)])), [""; 0]);
        assert_eq!(obstacles(&observation, &around(&[("eth0", true), ("leaving", false)])), [""; 0]);
        observation.draining = Some(3);
        let told = obstacles(&observation, &around(&[("eth0", false), ("eth1", false), ("leaving", true)]));
        let [draining, no_datapath] = &told[..] else { panic!("two reasons") };
        assert_eq!(draining, "draining: no new sessions are taken; 3 are left");
        assert!(no_datapath.contains("(eth0, eth1)"), "{no_datapath}");
    }
}
