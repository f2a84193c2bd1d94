//! A machine of one vCPU and 256 KiB of memory for one bare guest, set up in 64-bit kernel mode.

use std::time::Instant;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::guest::{self, CpuidBit, CpuidRegister, Guest, GuestResult, REPORT_PORT};

/// What a hypervisor cannot do without.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Three pages that KVM itself wants in the guest's address space on Intel: below 4 GiB, outside its memory.
const TSS_ADDRESS: usize = 0xfffb_d000;

// The guest's memory.
const MEMORY_BYTES: usize = 0x4_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const CODE: u64 = 0x8000;
const HANDLERS: u64 = 0x9000;
const HANDLER_BYTES: u64 = 16;
const DATA: u64 = 0x1_0000;
const STACK_TOP: u64 = 0x2_0000;

/// The vectors that the processor itself raises.
const EXCEPTIONS: u8 = 32;
const BREAKPOINT: u8 = 3;
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;

/// No guest reports more than twice; one that runs wild must not run up memory here.
const MAX_REPORTS: usize = 16;

/// A KVM that has what it takes to create machines.
pub(super) struct Kvm {
    kvm: kvm_ioctls::Kvm,
    cpuid: CpuId,
}

impl Kvm {
    /// Opens `/dev/kvm`; or says why it is of no use.
    pub(super) fn open() -> Result<Kvm, String> {
        let kvm = kvm_ioctls::Kvm::new()
            .map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(format!(
                "/dev/kvm has API version {version}, not {KVM_API_VERSION}"
            ));
        }
        for (capability, name) in NEEDED {
            if !kvm.check_extension(capability) {
                return Err(format!("KVM lacks {name}"));
            }
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| format!("KVM_GET_SUPPORTED_CPUID: {error}"))?;
        Ok(Kvm { kvm, cpuid })
    }

    /// Whether KVM offers a feature to guests.
    pub(super) fn offers(&self, needed: Option<CpuidBit>) -> bool {
        let Some(CpuidBit {
            leaf,
            register,
            bit,
        }) = needed
        else {
            return true;
        };
        self.cpuid
            .as_slice()
            .iter()
            .filter(|entry| entry.function == leaf && entry.index == 0)
            .any(|entry| {
                let value = match register {
                    CpuidRegister::Ebx => entry.ebx,
                    CpuidRegister::Ecx => entry.ecx,
                    CpuidRegister::Edx => entry.edx,
                };
                value >> bit & 1 == 1
            })
    }

    /// Runs a guest with `rcx` as given until it halts. May hang if KVM does, or the guest.
    pub(super) fn run(&self, guest: &Guest, rcx: u64) -> Result<GuestResult, String> {
        let failed =
            |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");

        // Dropped last: the machine refers to it.
        let memory =
            lay_out_memory(guest.code).map_err(|error| format!("the guest's memory: {error}"))?;
        let host_address = memory
            .get_host_address(GuestAddress(0))
            .map_err(|error| format!("the guest's memory: {error}"))?;
        let vm = self.kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(failed("KVM_SET_TSS_ADDR"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_BYTES as u64,
            userspace_addr: host_address as u64,
        };
        // SAFETY: the region is exactly the mapping that `memory` owns, which outlives `vm`, and nothing in this
        // process holds a reference into it while the guest writes there.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        let mut vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        vcpu.set_cpuid2(&self.cpuid)
            .map_err(failed("KVM_SET_CPUID2"))?;
        set_registers(&vcpu, guest.cr4, rcx)?;
        run_until_halt(&mut vcpu)
    }
}

fn lay_out_memory(code: &[u8]) -> Result<GuestMemoryMmap, String> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])
        .map_err(|error| error.to_string())?;
    let write = |address: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|error| error.to_string())
    };
    let write_u64 = |address: u64, value: u64| write(address, &value.to_le_bytes());

    // One page of 2 MiB, mapped to where it is.
    write_u64(PML4, PDPT | PRESENT_WRITABLE)?;
    write_u64(PDPT, PAGE_DIRECTORY | PRESENT_WRITABLE)?;
    write_u64(PAGE_DIRECTORY, LARGE_PAGE | PRESENT_WRITABLE)?;

    // Flat segments: 64-bit code, data.
    write_u64(GDT + u64::from(CODE_SELECTOR), 0x00af_9b00_0000_ffff)?;
    write_u64(GDT + u64::from(DATA_SELECTOR), 0x00cf_9300_0000_ffff)?;

    for vector in 0..EXCEPTIONS {
        let handler = HANDLERS + u64::from(vector) * HANDLER_BYTES;
        if vector == BREAKPOINT {
            write(handler, &guest::BREAKPOINT_HANDLER)?;
        } else {
            write(handler, &guest::exception_handler(vector))?;
        }
        let gate = interrupt_gate(handler);
        write(IDT + u64::from(vector) * 16, &gate.to_le_bytes())?;
    }
    write(CODE, code)?;
    Ok(memory)
}

/// A 64-bit interrupt gate for kernel mode (AMD64 manual, volume 2, "Interrupt-Gate and Trap-Gate Descriptors").
fn interrupt_gate(handler: u64) -> u128 {
    const PRESENT_INTERRUPT_GATE: u128 = 0x8e;
    let handler = u128::from(handler);
    (handler & 0xffff)
        | u128::from(CODE_SELECTOR) << 16
        | PRESENT_INTERRUPT_GATE << 40
        | (handler >> 16 & 0xffff) << 48
        | (handler >> 32) << 64
}

fn set_registers(vcpu: &VcpuFd, cr4: u64, rcx: u64) -> Result<(), String> {
    const CR0_PE_MP_ET_NE_WP_PG: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    const CR4_PAE_OSFXSR_OSXMMEXCPT: u64 = 1 << 5 | 1 << 9 | 1 << 10;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;

    let mut special = vcpu
        .get_sregs()
        .map_err(|error| format!("KVM_GET_SREGS: {error}"))?;
    special.cr0 = CR0_PE_MP_ET_NE_WP_PG;
    special.cr3 = PML4;
    special.cr4 = CR4_PAE_OSFXSR_OSXMMEXCPT | cr4;
    special.efer = EFER_LME_LMA;
    special.gdt.base = GDT;
    special.gdt.limit = DATA_SELECTOR + 7;
    special.idt.base = IDT;
    special.idt.limit = u16::from(EXCEPTIONS) * 16 - 1;
    special.cs = kvm_segment {
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 0b1011, // code, readable, accessed
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        limit: u32::MAX,
        selector: DATA_SELECTOR,
        type_: 0b0011, // data, writable, accessed
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    // Never used (nothing changes privilege), but Intel's processors enter no guest without one.
    special.tr = kvm_segment {
        limit: 0x67,
        type_: 0b1011,
        present: 1,
        ..Default::default()
    };
    vcpu.set_sregs(&special)
        .map_err(|error| format!("KVM_SET_SREGS: {error}"))?;

    let general = kvm_regs {
        rip: CODE,
        rsp: STACK_TOP,
        rdi: DATA,
        rcx,
        rflags: 1 << 1,
        ..Default::default()
    };
    vcpu.set_regs(&general)
        .map_err(|error| format!("KVM_SET_REGS: {error}"))
}

fn run_until_halt(vcpu: &mut VcpuFd) -> Result<GuestResult, String> {
    let mut reports = Vec::new();
    loop {
        let unexpected = match vcpu.run() {
            Ok(VcpuExit::IoOut(REPORT_PORT, &[a, b, c, d])) if reports.len() < MAX_REPORTS => {
                reports.push((u32::from_le_bytes([a, b, c, d]), Instant::now()));
                continue;
            }
            Ok(VcpuExit::Hlt) => return Ok(GuestResult::new(reports)),
            Ok(VcpuExit::Intr) => continue,
            Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => continue,
            Err(error) => return Err(format!("KVM_RUN: {error}")),
            Ok(VcpuExit::InternalError) => None,
            Ok(VcpuExit::Shutdown) => Some("the guest shut down (triple fault)".to_owned()),
            Ok(exit) => Some(format!("unexpected exit {exit:?}")),
        };
        return Err(unexpected.unwrap_or_else(|| internal_error(vcpu)));
    }
}

/// Names the last internal error (Linux, Documentation/virt/kvm/api.rst, KVM_EXIT_INTERNAL_ERROR).
fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: after an exit for this reason, KVM has filled in this member of the union; any bits are a valid u32.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    match suberror {
        1 => "KVM internal error: emulation failure".to_owned(),
        2 => "KVM internal error: simultaneous exceptions".to_owned(),
        3 => "KVM internal error: unexpected exit while delivering an event".to_owned(),
        4 => "KVM internal error: unexpected exit reason".to_owned(),
        other => format!("KVM internal error {other}"),
    }
}
