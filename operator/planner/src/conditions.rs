//! Building `metav1.Condition`s.

use paddock_crds::reference::{Condition, Time, set_condition};

/// The longest message that the API server accepts in a condition, in bytes.
const MESSAGE_LIMIT: usize = 32_768;

/// What a condition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell now.
    Unknown,
}

/// Writes conditions of one object at one time.
#[derive(Debug)]
pub struct Writer<'a> {
    /// The object's conditions.
    pub conditions: &'a mut Vec<Condition>,
    /// The generation of the spec that they answer.
    pub generation: Option<i64>,
    /// The time of a transition.
    pub now: &'a Time,
}

impl Writer<'_> {
    /// Sets a condition; its transition time moves only when its status does.
    pub fn set(&mut self, type_: &str, answer: Answer, reason: &str, message: impl Into<String>) {
        let status = match answer {
            Answer::True => "True",
            Answer::False => "False",
            Answer::Unknown => "Unknown",
        };
        set_condition(
            self.conditions,
            Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                observed_generation: self.generation,
                last_transition_time: self.now.clone(),
                reason: reason.to_owned(),
                message: shortened(message.into()),
            },
        );
    }

    /// Takes a condition away.
    pub fn remove(&mut self, type_: &str) {
        self.conditions.retain(|c| c.type_ != type_);
    }
}

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_LIMIT {
        let end = (0..=MESSAGE_LIMIT - 4)
            .rev()
            .find(|&i| message.is_char_boundary(i))
            .unwrap_or(0);
        message.truncate(end);
        message.push_str(" ...");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_transition_time_moves_with_the_status_alone() {
        let mut conditions = Vec::new();
        for (second, answer, expected) in [
            (1, Answer::False, 1),
            (2, Answer::False, 1),
            (3, Answer::True, 3),
        ] {
            Writer {
                conditions: &mut conditions,
                generation: Some(1),
                now: &at(second),
            }
            .set("Ready", answer, "R", "m");
            assert_eq!(conditions[0].last_transition_time, at(expected));
        }
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let cut = shortened("ü".repeat(40_000));
        assert!(cut.len() <= MESSAGE_LIMIT && cut.ends_with(" ..."));
    }
}
