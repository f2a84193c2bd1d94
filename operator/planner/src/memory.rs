//! How much of a host's memory a machine takes.

/// Memory of a host that a machine takes beyond its guest's own, whatever its size: 128 MiB.
///
/// A QEMU process without guest memory (code, heap, virtio rings, one thread per processor) stays under 80 MiB
/// resident, its monitor with a block cache under 32 MiB; the rest is margin.
pub const FIXED_OVERHEAD_BYTES: u64 = 128 << 20;

/// The part of the guest's memory that is added: 1 %.
///
/// The kernel keeps 8 bytes of page table for each 4 KiB of guest memory in the process and as much again in
/// the hypervisor's own tables (0.4 %), and slots, bitmaps and rounding take the remainder.
pub const PROPORTIONAL_OVERHEAD_PERCENT: u64 = 1;

/// Bytes of host memory beyond the guest's own, for a guest of `guest_bytes`. Saturates.
#[must_use]
pub fn overhead(guest_bytes: u64) -> u64 {
    FIXED_OVERHEAD_BYTES
        .saturating_add((guest_bytes / 100).saturating_mul(PROPORTIONAL_OVERHEAD_PERCENT))
}

/// Bytes of host memory that a machine takes in all. Saturates.
#[must_use]
pub fn need(guest_bytes: u64) -> u64 {
    guest_bytes.saturating_add(overhead(guest_bytes))
}

/// As [`need`], for a guest size in MiB as instances carry it; a negative size counts as none.
#[must_use]
pub fn need_of_mebibytes(guest_mebibytes: i64) -> u64 {
    need(
        u64::try_from(guest_mebibytes)
            .unwrap_or(0)
            .saturating_mul(1 << 20),
    )
}

/// A size for people: one decimal of the largest binary unit below it, rounded up, so that "short by" never reads zero.
#[must_use]
pub fn readable(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << shift {
            let tenths = (u128::from(bytes) * 10).div_ceil(1 << shift);
            return if tenths.is_multiple_of(10) {
                format!("{} {unit}", tenths / 10)
            } else {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_overhead_apart() {
        assert_eq!(overhead(192 << 20), (128 << 20) + (192 << 20) / 100);
        assert_eq!(need(100 << 20), (228 << 20) + (1 << 20));
        assert_eq!(need_of_mebibytes(100), need(100 << 20));
        assert_eq!(need_of_mebibytes(-1), FIXED_OVERHEAD_BYTES);
        assert_eq!(need(u64::MAX), u64::MAX);
    }

    #[test]
    fn writes_sizes_for_people() {
        assert_eq!(readable(1 << 30), "1 GiB");
        assert_eq!(readable((1 << 30) + (1 << 29)), "1.5 GiB");
        assert_eq!(readable((1 << 20) + 1), "1.1 MiB");
        assert_eq!(readable(512), "512 bytes");
        assert_eq!(readable(0), "0 bytes");
    }
}
