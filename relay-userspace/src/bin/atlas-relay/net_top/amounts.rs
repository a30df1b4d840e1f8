//! Amounts in at most seven characters, of which three are digits that count.

/// `950 B`, `1.05 MB`: powers of 1000, as the limits are given.
pub fn bytes(count: u64) -> String {
    let (digits, prefix) = scaled(count);
    format!("{digits} {prefix}B")
}

/// `950`, `1.05k`, `12.3M`.
pub fn packets(count: u64) -> String {
    let (digits, prefix) = scaled(count);
    format!("{digits}{prefix}")
}

fn scaled(count: u64) -> (String, &'static str) {
    if count < 1000 {
        return (count.to_string(), "");
    }
    let mut value = count as f64 / 1000.0;
    let mut prefix = "k";
    for larger in ["M", "G", "T", "P", "E"] {
        // What would be rounded to 1000 is one of the next.
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        prefix = larger;
    }
    let digits = match value {
        0.0..9.995 => format!("{value:.2}"),
        9.995..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    };
    (digits, prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_prefix_say_any_amount() {
        for (count, said) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_999, "10.0 kB"),
            (99_960, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (1_048_576, "1.05 MB"),
            (123_456_789_012, "123 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(count), said);
            assert!(said.len() <= 7);
        }
        assert_eq!([packets(12), packets(8_512)], ["12", "8.51k"]);
    }
}
