//! Gives memory back to the system after a burst.
//!
//! What a burst of machines frees lies between what it leaves, below the top of the heap: the allocator keeps such
//! pages until it is asked for them.

use crate::queue::Queue;
use std::time::Duration;

/// How long nothing is done before a burst counts as over.
const CALM: Duration = Duration::from_secs(2);

/// How much work makes a burst.
const BURST: u64 = 100;

/// Whether memory is to be given back, from how much work was done at each look.
#[derive(Debug, Default)]
struct Bursts {
    trimmed: u64,
    last: u64,
}

impl Bursts {
    fn is_over(&mut self, done: u64) -> bool {
        let calm = done == self.last;
        self.last = done;
        let over = calm && done.wrapping_sub(self.trimmed) >= BURST;
        if over {
            self.trimmed = done;
        }
        over
    }
}

/// Gives memory back after each burst, for good.
pub async fn run(queue: &Queue) {
    let mut bursts = Bursts::default();
    loop {
        tokio::time::sleep(CALM).await;
        if bursts.is_over(queue.done_so_far()) {
            // It walks the heap, which takes milliseconds: not on a thread that others wait for.
            let trimmed = tokio::task::spawn_blocking(trim).await;
            if trimmed.is_err() {
                return;
            }
        }
    }
}

fn trim() {
    // SAFETY: malloc_trim takes the allocator's own locks and changes nothing that is allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_over_once_it_is_calm() {
        let mut bursts = Bursts::default();
        let looks = [0, 50, 50, 90, 150, 150, 150, 200, 200, 249, 250, 250];
        let over = looks.map(|done| bursts.is_over(done));
        let expected = [5, 11];
        for (at, over) in over.into_iter().enumerate() {
            assert_eq!(over, expected.contains(&at), "look {at}");
        }
    }
}
