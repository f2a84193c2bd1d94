//! The bare guests: machine code, what it needs, what a processor makes of it.
//!
//! A guest starts in 64-bit kernel mode with flat segments, `rdi` at zeroed memory aligned to 64 bytes and `rcx` as
//! given. It reports by 32-bit writes to [`REPORT_PORT`] and ends with `hlt`.

use std::time::{Duration, Instant};

use super::super::report::KvmStep;

/// Where guests report. Nothing else uses the port: the machine has no devices.
pub(super) const REPORT_PORT: u16 = 0xf4;
/// A report of this, with the vector in the low byte, is from [`exception_handler`].
const EXCEPTION: u32 = 0xfa17_0000;
/// `dec` and `jnz`.
pub(super) const INSTRUCTIONS_PER_ITERATION: u64 = 2;

/// A bit of control register 4.
const CR4_OSXSAVE: u64 = 1 << 18;
/// A bit of control register 4. No page of these guests is a user's, so it forbids nothing.
const CR4_SMAP: u64 = 1 << 21;

/// A register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CpuidRegister {
    Ebx,
    Ecx,
    Edx,
}

/// A feature bit of CPUID, sub-leaf 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CpuidBit {
    pub(super) leaf: u32,
    pub(super) register: CpuidRegister,
    pub(super) bit: u32,
}

/// One guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest {
    /// Position-independent machine code.
    pub(super) code: &'static [u8],
    /// What CPUID must offer; nothing for what every 64-bit processor has.
    pub(super) needs: Option<CpuidBit>,
    /// Bits of CR4 besides those that every guest gets.
    pub(super) cr4: u64,
    /// What it reports on a processor.
    pub(super) expected: &'static [u32],
}

const fn bit(leaf: u32, register: CpuidRegister, bit: u32) -> Option<CpuidBit> {
    Some(CpuidBit {
        leaf,
        register,
        bit,
    })
}

/// The guest of a step.
#[rustfmt::skip]
pub(super) fn of(step: KvmStep) -> Guest {
    match step {
        KvmStep::PortIo => Guest {
            code: &[
                0xb8, 0x50, 0x44, 0x4b, 0x00, // mov eax, 0x4b4450
                0xe7, 0xf4,                   // out 0xf4, eax
                0xf4,                         // hlt
            ],
            needs: None,
            cr4: 0,
            expected: &[0x4b_4450],
        },
        KvmStep::Rate => Guest {
            code: &[
                0xb8, 1, 0, 0, 0, // mov eax, 1
                0xe7, 0xf4,       // out 0xf4, eax
                0x48, 0xff, 0xc9, // again: dec rcx
                0x75, 0xfb,       // jnz again
                0xb8, 2, 0, 0, 0, // mov eax, 2
                0xe7, 0xf4,       // out 0xf4, eax
                0xf4,             // hlt
            ],
            needs: None,
            cr4: 0,
            expected: &[1, 2],
        },
        KvmStep::Sse => Guest {
            code: &[
                0x48, 0xb8, 1, 0, 0, 0, 2, 0, 0, 0, // mov rax, 0x0000000200000001
                0x66, 0x48, 0x0f, 0x6e, 0xc0,       // movq xmm0, rax
                0x66, 0x0f, 0xfe, 0xc0,             // paddd xmm0, xmm0
                0x0f, 0x29, 0x07,                   // movaps [rdi], xmm0
                0x8b, 0x47, 0x04,                   // mov eax, [rdi + 4]
                0xe7, 0xf4,                         // out 0xf4, eax
                0xf4,                               // hlt
            ],
            needs: None,
            cr4: 0,
            expected: &[4],
        },
        KvmStep::Cmpxchg16b => Guest {
            code: &[
                0x31, 0xc0,                   // xor eax, eax
                0x31, 0xd2,                   // xor edx, edx
                0xbb, 5, 0, 0, 0,             // mov ebx, 5
                0xb9, 6, 0, 0, 0,             // mov ecx, 6
                0xf0, 0x48, 0x0f, 0xc7, 0x0f, // lock cmpxchg16b [rdi]
                0x0f, 0x94, 0xc0,             // sete al
                0x0f, 0xb6, 0xc0,             // movzx eax, al
                0x03, 0x07,                   // add eax, [rdi]
                0x03, 0x47, 0x08,             // add eax, [rdi + 8]
                0xe7, 0xf4,                   // out 0xf4, eax
                0xf4,                         // hlt
            ],
            needs: bit(1, CpuidRegister::Ecx, 13),
            cr4: 0,
            expected: &[1 + 5 + 6],
        },
        KvmStep::Int3 => Guest {
            code: &[
                0x31, 0xdb, // xor ebx, ebx
                0xcc,       // int3 (BREAKPOINT_HANDLER sets ebx to 3)
                0x89, 0xd8, // mov eax, ebx
                0xe7, 0xf4, // out 0xf4, eax
                0xf4,       // hlt
            ],
            needs: None,
            cr4: 0,
            expected: &[3],
        },
        KvmStep::Xsave => Guest {
            code: &[
                0x31, 0xc9,                   // xor ecx, ecx
                0x31, 0xd2,                   // xor edx, edx
                0xb8, 3, 0, 0, 0,             // mov eax, 3 (x87 and SSE state)
                0x0f, 0x01, 0xd1,             // xsetbv
                0x0f, 0x01, 0xd0,             // xgetbv
                0xe7, 0xf4,                   // out 0xf4, eax
                0xb8, 7, 0, 0, 0,             // mov eax, 7
                0x66, 0x0f, 0x6e, 0xc0,       // movd xmm0, eax
                0xb8, 3, 0, 0, 0,             // mov eax, 3
                0x0f, 0xae, 0x27,             // xsave [rdi]
                0x8b, 0x87, 0xa0, 0, 0, 0,    // mov eax, [rdi + 160] (xmm0 in the XSAVE area)
                0xe7, 0xf4,                   // out 0xf4, eax
                0xf4,                         // hlt
            ],
            needs: bit(1, CpuidRegister::Ecx, 26),
            cr4: CR4_OSXSAVE,
            expected: &[3, 7],
        },
        KvmStep::Popcnt => Guest {
            code: &[
                0xb8, 0x00, 0xff, 0, 0, // mov eax, 0xff00
                0xf3, 0x0f, 0xb8, 0xc0, // popcnt eax, eax
                0xe7, 0xf4,             // out 0xf4, eax
                0xf4,                   // hlt
            ],
            needs: bit(1, CpuidRegister::Ecx, 23),
            cr4: 0,
            expected: &[8],
        },
        KvmStep::Rdtscp => Guest {
            code: &[
                0xb9, 0xff, 0xff, 0xff, 0xff, // mov ecx, 0xffffffff
                0x0f, 0x01, 0xf9,             // rdtscp
                0x89, 0xc8,                   // mov eax, ecx (TSC_AUX, 0 after reset)
                0xe7, 0xf4,                   // out 0xf4, eax
                0xf4,                         // hlt
            ],
            needs: bit(0x8000_0001, CpuidRegister::Edx, 27),
            cr4: 0,
            expected: &[0],
        },
        KvmStep::Stac => Guest {
            code: &[
                0x0f, 0x01, 0xcb, // stac
                0x9c,             // pushfq
                0x58,             // pop rax
                0x0f, 0x01, 0xca, // clac
                0xc1, 0xe8, 18,   // shr eax, 18 (RFLAGS.AC)
                0x83, 0xe0, 1,    // and eax, 1
                0xe7, 0xf4,       // out 0xf4, eax
                0xf4,             // hlt
            ],
            needs: bit(7, CpuidRegister::Ebx, 20),
            cr4: CR4_SMAP,
            expected: &[1],
        },
    }
}

/// The handler of `int3`.
#[rustfmt::skip]
pub(super) const BREAKPOINT_HANDLER: [u8; 7] = [
    0xbb, 3, 0, 0, 0, // mov ebx, 3
    0x48, 0xcf,       // iretq
];

/// The handler of any other exception: reports it and ends the guest.
#[rustfmt::skip]
pub(super) const fn exception_handler(vector: u8) -> [u8; 8] {
    let [_, second, third, fourth] = EXCEPTION.to_le_bytes();
    [
        0xb8, vector, second, third, fourth, // mov eax, EXCEPTION | vector
        0xe7, 0xf4,                          // out 0xf4, eax
        0xf4,                                // hlt
    ]
}

/// What a guest reported, and when.
#[derive(Debug)]
pub(super) struct GuestResult {
    reports: Vec<(u32, Instant)>,
}

impl GuestResult {
    pub(super) fn new(reports: Vec<(u32, Instant)>) -> GuestResult {
        GuestResult { reports }
    }

    pub(super) fn reported(&self) -> Vec<u32> {
        self.reports.iter().map(|(value, _)| *value).collect()
    }

    /// The exception that ended it, if one did.
    pub(super) fn exception(&self) -> Option<String> {
        let (value, _) = self.reports.last()?;
        let vector = value.checked_sub(EXCEPTION).filter(|vector| *vector < 32)?;
        Some(match vector {
            0 => "exception 0 (#DE)".to_owned(),
            6 => "exception 6 (#UD)".to_owned(),
            7 => "exception 7 (#NM)".to_owned(),
            8 => "exception 8 (#DF)".to_owned(),
            13 => "exception 13 (#GP)".to_owned(),
            14 => "exception 14 (#PF)".to_owned(),
            other => format!("exception {other}"),
        })
    }

    /// The time from its first report to its last.
    pub(super) fn between_first_and_last(&self) -> Duration {
        match (self.reports.first(), self.reports.last()) {
            (Some((_, first)), Some((_, last))) => last.duration_since(*first),
            _ => Duration::ZERO,
        }
    }
}
