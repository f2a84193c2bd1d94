//! Cylinders, heads and sectors.

/// A disk's geometry as old BIOSes see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) cylinders: u16,
    pub(crate) heads: u8,
    pub(crate) sectors: u8,
}

impl Geometry {
    /// The geometry of a disk of `sectors` sectors: the algorithm of the
    /// specification's appendix, rounded down. A disk beyond 65535*16*255
    /// sectors gets the largest geometry there is.
    pub(crate) fn of(sectors: u64) -> Geometry {
        const LARGEST: u64 = 65_535 * 16 * 255;
        let total = sectors.min(LARGEST);
        let (per_track, heads, cylinder_times_heads);
        if total >= 65_535 * 16 * 63 {
            (per_track, heads, cylinder_times_heads) = (255, 16, total / 255);
        } else {
            let mut s = 17;
            let mut cth = total / s;
            let mut h = cth.div_ceil(1024).max(4);
            if cth >= h * 1024 || h > 16 {
                s = 31;
                h = 16;
                cth = total / s;
            }
            if cth >= h * 1024 {
                s = 63;
                h = 16;
                cth = total / s;
            }
            (per_track, heads, cylinder_times_heads) = (s, h, cth);
        }
        let cylinders = cylinder_times_heads / heads;
        Geometry {
            // At most 65535 by the bound on `total`; heads <= 16; s <= 255.
            cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
            heads: heads as u8,
            sectors: per_track as u8,
        }
    }

    /// How many sectors the geometry spans.
    #[cfg(test)]
    pub(crate) fn span(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sectors: u64) -> (u16, u8, u8) {
        let geometry = Geometry::of(sectors);
        (geometry.cylinders, geometry.heads, geometry.sectors)
    }

    #[test]
    fn known_sizes_have_their_known_geometries() {
        // 1 MiB: 2048/17 = 120 tracks on 4 heads.
        assert_eq!(of(2048), (30, 4, 17));
        // 64 MiB: 131072/17 = 7710 tracks, 8 heads.
        assert_eq!(of(131_072), (963, 8, 17));
        // 8 GiB: 63 sectors.
        assert_eq!(of(16_777_216), (16_644, 16, 63));
        // 127 GiB and 2040 GiB: the largest.
        assert_eq!(of(127 << 21), (65_278, 16, 255));
        assert_eq!(of(2040 << 21), (65_535, 16, 255));
        assert_eq!(of(u64::MAX), (65_535, 16, 255));
    }

    #[test]
    fn a_geometry_never_spans_more_than_the_disk() {
        for shift in 11..42 {
            for sectors in [(1u64 << shift) - 1, 1 << shift, (1 << shift) + 12_345] {
                assert!(Geometry::of(sectors).span() <= sectors, "{sectors}");
                assert!(Geometry::of(sectors).cylinders > 0, "{sectors}");
            }
        }
    }
}
