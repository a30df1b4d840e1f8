//! Whether the relay is ready for new sessions, and if not why.

use super::observation::Observation;

/// Why it is not ready, one reason a line; none: it is.
pub fn obstacles(observation: &Observation) -> Vec<String> {
    let mut obstacles = Vec::new();
    if let Some(left) = observation.draining {
        obstacles.push(format!("draining: no new sessions are taken; {left} are left"));
    }
    let interfaces = &observation.path.interfaces;
    if !interfaces.is_empty() && interfaces.iter().all(|interface| !interface.is_there) {
        let names: Vec<&str> = interfaces.iter().map(|interface| &*interface.name).collect();
        obstacles.push(format!(
            "no datapath: every interface that the program was attached to is gone ({}); restart the relay once one is back",
            names.join(", ")
        ));
    }
    obstacles
}

#[cfg(test)]
mod tests {
    use super::super::observation::AttachedInterface;
    use super::*;

    fn interface(name: &str, is_there: bool) -> AttachedInterface {
        AttachedInterface { index: 1, name: name.to_owned(), mode: "xdp-native", is_there }
    }

    #[test]
    fn a_relay_is_ready_unless_it_drains_or_all_its_interfaces_are_gone() {
        let mut observation = Observation::example();
        assert_eq!(obstacles(&observation), [""; 0], "without a program it forwards by itself");
        observation.path.interfaces = vec![interface("eth0", false), interface("eth1", true)];
        assert_eq!(obstacles(&observation), [""; 0]);
        observation.path.interfaces = vec![interface("eth0", false), interface("eth1", false)];
        observation.draining = Some(3);
        let [draining, no_datapath] = &obstacles(&observation)[..] else { panic!("two reasons") };
        assert_eq!(draining, "draining: no new sessions are taken; 3 are left");
        assert!(no_datapath.contains("(eth0, eth1)"), "{no_datapath}");
    }
}
