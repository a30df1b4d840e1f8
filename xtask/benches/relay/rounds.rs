//! Measuring in turns: what is compared has the same weather.

use xtask::interrupt;

/// What is measured, once in each round.
pub struct Candidate<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// One measurement.
    pub run: Box<dyn FnMut() -> anyhow::Result<f64> + 'a>,
}

impl<'a> Candidate<'a> {
    /// A candidate.
    pub fn new(name: &'a str, run: impl FnMut() -> anyhow::Result<f64> + 'a) -> Self {
        Candidate { name, run: Box::new(run) }
    }
}

/// One figure from each round.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples(pub Vec<f64>);

/// Measures all candidates once in each of `rounds` rounds, every other time in reverse. The samples are in the order of
/// the candidates.
///
/// # Errors
/// A candidate failed, or a stop signal has come.
pub fn in_turns(rounds: usize, candidates: &mut [Candidate]) -> anyhow::Result<Vec<Samples>> {
    let mut samples = vec![Samples(Vec::with_capacity(rounds)); candidates.len()];
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for place in order {
            interrupt::check()?;
            let candidate = &mut candidates[place];
            let figure = (candidate.run)().map_err(|error| error.context(candidate.name.to_owned()))?;
            samples[place].0.push(figure);
        }
    }
    Ok(samples)
}

impl Samples {
    /// The middle one.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() % 2 {
            0 => sorted[middle.saturating_sub(1)..=middle].iter().sum::<f64>() / 2.0,
            _ => sorted[middle],
        }
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(f64::NAN)
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(f64::NAN)
    }

    /// Round by round, this over `other`.
    pub fn over(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(this, other)| this / other).collect())
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}
