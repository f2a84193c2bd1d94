//! When progress is told: often enough to be followed, seldom enough to cost nothing.

use std::time::Duration;

/// A task is reported as running when it takes longer than this.
pub const QUIET: Duration = Duration::from_secs(1);
/// From one report to the next at least.
pub const EACH: Duration = Duration::from_secs(2);
/// Per cent from one report to the next at least.
pub const STEP: u8 = 5;
/// Work that tells nothing for this long is reported as stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

/// What is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Per cent done, 0 to 100.
    pub percent: u8,
    /// Nothing has been heard of the work for [`STUCK_AFTER`].
    pub stuck: bool,
}

/// What was told of one task, and what is due.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    told: Option<(Duration, Told)>,
    beat: u64,
    beat_at: Duration,
}

impl Progress {
    /// What to tell `now`, counted from the beginning of the work. `beat` changes whenever the work tells something.
    pub fn due(&mut self, now: Duration, beat: u64, percent: u8) -> Option<Told> {
        if beat != self.beat {
            self.beat = beat;
            self.beat_at = now;
        }
        let new = Told {
            percent,
            stuck: now.saturating_sub(self.beat_at) >= STUCK_AFTER,
        };
        let is_due = match self.told {
            None => now >= QUIET,
            Some((at, old)) => {
                now.saturating_sub(at) >= EACH
                    && (new.stuck != old.stuck || new.percent / STEP > old.percent / STEP)
            }
        };
        if !is_due {
            return None;
        }
        self.told = Some((now, new));
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of work that is looked at so often.
    fn tell(looks: &[(u64, u64, u8)]) -> Vec<(u64, u8, bool)> {
        let mut progress = Progress::default();
        let told = looks.iter().filter_map(|&(milliseconds, beat, percent)| {
            progress
                .due(Duration::from_millis(milliseconds), beat, percent)
                .map(|told| (milliseconds, told.percent, told.stuck))
        });
        told.collect()
    }

    #[test]
    fn quick_work_tells_nothing() {
        assert_eq!(tell(&[(0, 1, 0), (999, 2, 99)]), []);
    }

    #[test]
    fn is_told_at_steps_of_five_and_every_two_seconds_at_most() {
        assert_eq!(
            tell(&[
                (1_000, 1, 3),
                (2_000, 2, 40),
                (3_000, 3, 41),
                (5_000, 4, 44),
                (6_000, 5, 45),
                (9_000, 6, 49),
                (9_500, 7, 50),
            ]),
            [
                (1_000, 3, false),
                (3_000, 41, false),
                (6_000, 45, false),
                (9_500, 50, false)
            ]
        );
    }

    #[test]
    fn work_that_hangs_is_told_once_and_so_is_its_going_on() {
        assert_eq!(
            tell(&[
                (1_000, 1, 3),
                (60_000, 1, 3),
                (61_000, 1, 3),
                (90_000, 1, 3),
                (95_000, 2, 3),
                (96_000, 3, 3),
            ]),
            [(1_000, 3, false), (61_000, 3, true), (95_000, 3, false)]
        );
    }
}
