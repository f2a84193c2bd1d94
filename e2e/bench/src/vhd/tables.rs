//! What is measured, and what it should reach.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::Scale;
use crate::files::{Files, sync};
use crate::fio::{self, Load, Until};
use crate::full_disk;
use crate::programs::{Ended, Programs, Reader, Server, forget, run, warm};
use crate::rows::{Goal, Sample, Table};

// The contenders.
const VHD: &str = "vhd";
const VHD_RAW: &str = "vhd raw";
const VHD_SINGLE: &str = "vhd single";
const QEMU_VPC: &str = "qemu vpc";
const QEMU_VPC_CACHED: &str = "qemu vpc cached";
const QEMU_QCOW2: &str = "qemu qcow2";
const QEMU_RAW: &str = "qemu raw";
const QEMU_IMG: &str = "qemu-img";

/// Disks of a chain, the first one included.
const CHAIN: u32 = 10;
const MIB: u64 = 1 << 20;
/// A block of a dynamic disk: a write to another one allocates.
const BLOCK: u64 = 2 * MIB;

/// All tables whose name contains `only`.
pub(crate) fn measure(
    programs: &Programs,
    files: &Files,
    scale: Scale,
    only: &str,
) -> Result<Vec<Table>> {
    let mut bench = Bench {
        programs,
        files,
        scale,
        only,
        tables: Vec::new(),
    };
    bench.served_disks()?;
    bench.allocations()?;
    bench.chain()?;
    bench.conversions()?;
    bench.full_disk()?;
    Ok(bench.tables)
}

struct Bench<'a> {
    programs: &'a Programs,
    files: &'a Files,
    scale: Scale,
    only: &'a str,
    tables: Vec<Table>,
}

impl<'a> Bench<'a> {
    fn wants(&self, names: &[&str]) -> bool {
        names.iter().any(|name| name.contains(self.only))
    }

    /// Measures one table, if it is wanted, and shows it at once.
    fn add(
        &mut self,
        name: &str,
        unit: &'static str,
        contenders: &[&'static str],
        goals: &[Goal],
        measure: impl FnMut(&'static str) -> Result<Sample>,
    ) -> Result<()> {
        if self.wants(&[name]) {
            let rounds = self.scale.rounds;
            let table = Table::measure(name, unit, rounds, contenders, goals, measure)?;
            eprint!("{table}");
            self.tables.push(table);
        }
        Ok(())
    }

    /// A disk that was made out of another: `vhd convert` with these arguments.
    fn convert(&self, arguments: &[&str], source: &Path, name: &str) -> Result<PathBuf> {
        let target = self.files.path(name);
        let mut command = self.programs.vhd(["convert"]);
        run(command.args(arguments).arg(source).arg(&target))?;
        Ok(target)
    }

    /// Reading and overwriting what is there, in the page cache and past it.
    fn served_disks(&mut self) -> Result<()> {
        let small = [
            ("4k random overwrite, depth 1", "randwrite", 1),
            ("4k random overwrite, depth 32", "randwrite", 32),
            ("4k random read, depth 1", "randread", 1),
            ("4k random read, depth 32", "randread", 32),
        ];
        let flushed = "4k random overwrite with a flush every 32, depth 32";
        let sequential = [
            ("1 MiB sequential read, depth 4", "read"),
            ("1 MiB sequential write, depth 4", "write"),
        ];
        let past_cache = [
            (
                "past the page cache: 4k random overwrite, depth 32",
                "randwrite",
            ),
            ("past the page cache: 4k random read, depth 32", "randread"),
        ];
        // What a server that goes past it is worth beside one that is left to itself.
        let overwrite = [
            Goal::AtLeast(0.8, VHD_RAW),
            Goal::AtLeast(10.0, QEMU_VPC_CACHED),
        ];
        let read = [Goal::AtLeast(0.9, VHD_RAW)];
        if !self.wants(&small.map(|(name, ..)| name))
            && !self.wants(&sequential.map(|(name, _)| name))
            && !self.wants(&past_cache.map(|(name, _)| name))
            && !self.wants(&[flushed])
        {
            return Ok(());
        }
        let Scale { size, seconds, .. } = self.scale;
        self.files.need(3 * size + 256 * MIB)?;
        let raw = self.files.random("served.img", size, false)?;
        let to_dynamic = ["--from", "raw", "--to", "dynamic"];
        let vhd = self.convert(&to_dynamic, &raw, "served.vhd")?;
        let vpc = self.files.path("served.vpc");
        run(&mut qemu_convert("raw", &raw, "vpc", &vpc))?;
        for path in [&raw, &vhd, &vpc] {
            sync(path)?;
            warm(path)?;
        }
        let serve = Serve {
            programs: self.programs,
            files: self.files,
        };
        let of = |who: &str| match who {
            VHD => (Reader::Vhd, &vhd),
            VHD_RAW => (Reader::VhdRaw, &raw),
            QEMU_VPC => (Reader::Qemu("vpc"), &vpc),
            _ => (Reader::Qemu("raw"), &raw),
        };
        let contenders = [VHD, VHD_RAW, QEMU_VPC, QEMU_RAW];
        for (name, pattern, depth) in small {
            let goals: &[Goal] = match (pattern, depth) {
                ("randwrite", 32) => &[Goal::AtLeast(10.0, QEMU_VPC), Goal::AtLeast(0.8, VHD_RAW)],
                ("randwrite", _) => &[Goal::AtLeast(0.8, VHD_RAW)],
                _ => &[Goal::AtLeast(0.9, VHD_RAW)],
            };
            let load = Load::small(pattern, depth, size, seconds);
            self.add(name, "IOPS", &contenders, goals, |who| {
                let (reader, file) = of(who);
                serve.warm_to_fio(reader, file, load)
            })?;
        }
        let load = Load {
            flush_every: Some(32),
            ..Load::small("randwrite", 32, size, seconds)
        };
        let goals = [Goal::AtLeast(0.8, VHD_RAW)];
        self.add(flushed, "IOPS", &contenders, &goals, |who| {
            let (reader, file) = of(who);
            serve.warm_to_fio(reader, file, load)
        })?;
        for (name, pattern) in sequential {
            let load = Load {
                block: MIB,
                align: MIB,
                ..Load::small(pattern, 4, size, seconds)
            };
            let goals = [Goal::AtLeast(0.9, VHD_RAW)];
            self.add(name, "MiB/s", &contenders, &goals, |who| {
                let (reader, file) = of(who);
                serve.warm_to_fio(reader, file, load)
            })?;
        }
        let uncached = [VHD, VHD_RAW, QEMU_VPC, QEMU_RAW, QEMU_VPC_CACHED];
        let of = |who: &str| match who {
            VHD => (Reader::VhdUncached, &vhd),
            VHD_RAW => (Reader::VhdRawUncached, &raw),
            QEMU_VPC => (Reader::QemuUncached("vpc"), &vpc),
            QEMU_VPC_CACHED => (Reader::Qemu("vpc"), &vpc),
            _ => (Reader::QemuUncached("raw"), &raw),
        };
        for (name, pattern) in past_cache {
            let load = Load::small(pattern, 32, size, seconds);
            let (contenders, goals) = match pattern {
                "randwrite" => (&uncached[..], &overwrite[..]),
                _ => (&uncached[..4], &read[..]),
            };
            self.add(name, "IOPS", contenders, goals, |who| {
                let (reader, file) = of(who);
                match reader {
                    Reader::Qemu(_) => serve.warm_to_fio(reader, file, load),
                    _ => serve.to_fio(reader, file, load),
                }
            })?;
        }
        ["served.img", "served.vhd", "served.vpc"]
            .iter()
            .try_for_each(|name| self.files.remove(name))
    }

    /// Writes to empty disks, each to another block of 2 MiB.
    fn allocations(&mut self) -> Result<()> {
        let name = "4k random write that allocates, depth 32";
        if !self.wants(&[name]) {
            return Ok(());
        }
        let (programs, files) = (self.programs, self.files);
        let serve = Serve { programs, files };
        // The largest disk: it has more blocks than there are writes, and few meet the same one.
        let load = Load {
            align: BLOCK,
            ..Load::small(
                "randwrite",
                32,
                full_disk::SIZE_BYTES,
                self.scale.allocation_seconds,
            )
        };
        let size = full_disk::SIZE_BYTES.to_string();
        let goals = [Goal::AtLeast(3.0, QEMU_VPC), Goal::Past(QEMU_QCOW2)];
        self.add(name, "IOPS", &[VHD, QEMU_VPC, QEMU_QCOW2], &goals, |who| {
            let file = files.path("empty");
            let reader = match who {
                VHD => Reader::Vhd,
                QEMU_VPC => Reader::Qemu("vpc"),
                _ => Reader::Qemu("qcow2"),
            };
            match reader {
                Reader::Qemu(format) => {
                    let mut command = Command::new("qemu-img");
                    command.args(["create", "-q", "-f", format]);
                    if format == "vpc" {
                        // Of any size, not only of what cylinders, heads and sectors can tell.
                        command.args(["-o", "force_size=on"]);
                    }
                    run(command.arg(&file).arg(&size))?
                }
                _ => {
                    let mut command = programs.vhd(["create", "--type", "dynamic"]);
                    run(command.args(["--size", &size]).arg(&file))?
                }
            };
            sync(&file)?;
            let rate = serve.to_fio(reader, &file, load)?;
            files.remove("empty")?;
            Ok(rate)
        })
    }

    /// Ten disks, of which each of the nine upper ones has written a tenth of what is read.
    fn chain(&mut self) -> Result<()> {
        let names = [
            ("chain of 10, 4k random read, depth 1", 1),
            ("chain of 10, 4k random read, depth 32", 32),
        ];
        if !self.wants(&names.map(|(name, _)| name)) {
            return Ok(());
        }
        let Scale { size, seconds, .. } = self.scale;
        self.files.need(3 * size + 256 * MIB)?;
        let serve = Serve {
            programs: self.programs,
            files: self.files,
        };
        let raw = self.files.random("chain.img", size, false)?;
        let to_dynamic = ["--from", "raw", "--to", "dynamic"];
        let single = self.convert(&to_dynamic, &raw, "chain-0.vhd")?;
        self.files.remove("chain.img")?;
        let mut top = single.clone();
        for level in 1..CHAIN {
            let child = self.files.path(&format!("chain-{level}.vhd"));
            let mut create = self
                .programs
                .vhd(["create", "--type", "differencing", "--parent"]);
            run(create.arg(&top).arg(&child))?;
            let load = Load {
                block: 64 << 10,
                align: 64 << 10,
                until: Until::Requests(size / u64::from(CHAIN) / (64 << 10)),
                ..Load::small("randwrite", 32, size, seconds)
            };
            serve.to_fio(Reader::Vhd, &child, load)?;
            top = child;
        }
        for level in 0..CHAIN {
            warm(&self.files.path(&format!("chain-{level}.vhd")))?;
        }
        let goals = [Goal::AtLeast(0.8, VHD_SINGLE)];
        for (name, depth) in names {
            let load = Load::small("randread", depth, size, seconds);
            self.add(name, "IOPS", &[VHD, VHD_SINGLE], &goals, |who| {
                let file = if who == VHD { &top } else { &single };
                // The single disk is a parent, which must not change.
                serve.to_fio(Reader::VhdReadOnly, file, load)
            })?;
        }
        (0..CHAIN).try_for_each(|level| self.files.remove(&format!("chain-{level}.vhd")))
    }

    /// A raw image to a dynamic disk and back, until it is durable.
    fn conversions(&mut self) -> Result<()> {
        let (there, back) = ("raw to dynamic, with sync", "dynamic to raw, with sync");
        if !self.wants(&[there, back]) {
            return Ok(());
        }
        let (programs, files) = (self.programs, self.files);
        let size = self.scale.convert_size;
        self.files.need(2 * size + 256 * MIB)?;
        let raw = files.random("source.img", size, true)?;
        let to_dynamic = ["convert", "--from", "raw", "--to", "dynamic"];
        let timed = |mut command: Command, target: &Path| {
            let started = Instant::now();
            run(&mut command)?;
            sync(target)?;
            let seconds = started.elapsed().as_secs_f64();
            files.remove("target")?;
            Ok(seconds.into())
        };
        let target = files.path("target");
        let goals = [Goal::AtMost(1.0, QEMU_IMG)];
        self.add(there, "s", &[VHD, QEMU_IMG], &goals, |who| {
            warm(&raw)?;
            let mut command = programs.vhd(to_dynamic);
            command.arg(&raw).arg(&target);
            match who {
                VHD => timed(command, &target),
                _ => timed(qemu_convert("raw", &raw, "vpc", &target), &target),
            }
        })?;
        let vhd = self.convert(&to_dynamic[1..], &raw, "source.vhd")?;
        files.remove("source.img")?;
        let goals = [Goal::AtMost(0.8, QEMU_IMG)];
        self.add(back, "s", &[VHD, QEMU_IMG], &goals, |who| {
            warm(&vhd)?;
            let mut command = programs.vhd(["convert", "--to", "raw"]);
            command.arg(&vhd).arg(&target);
            match who {
                VHD => timed(command, &target),
                _ => timed(qemu_convert("vpc", &vhd, "raw", &target), &target),
            }
        })?;
        files.remove("source.vhd")
    }

    /// The largest disk there is, all of it allocated.
    fn full_disk(&mut self) -> Result<()> {
        let seconds = "check of a full disk of 2040 GiB, time";
        let memory = "check of a full disk of 2040 GiB, peak memory";
        let served = "serving a full disk of 2040 GiB, peak memory";
        if !self.wants(&[seconds, memory, served]) {
            return Ok(());
        }
        let (programs, files) = (self.programs, self.files);
        files.need(1024 * MIB)?;
        let disk = files.path("full.vhd");
        let mut create = programs.vhd(["create", "--type", "dynamic", "--size"]);
        run(create.arg(full_disk::SIZE).arg(&disk))?;
        full_disk::allocate_all(&disk)?;
        let check = || -> Result<Ended> { run(programs.vhd(["check"]).arg(&disk)) };
        self.add(seconds, "s", &[VHD], &[], |_| Ok(check()?.seconds.into()))?;
        self.add(memory, "MiB", &[VHD], &[], |_| {
            Ok(check()?.peak_mebibytes.into())
        })?;
        let serve = Serve { programs, files };
        let pause = self.scale.seconds;
        self.add(served, "MiB", &[VHD], &[Goal::Within(40.0)], |_| {
            let server = serve.at_socket(Reader::Vhd, &disk)?;
            for (pattern, depth) in [("randread", 32), ("randrw", 32)] {
                let load = Load::small(pattern, depth, full_disk::SIZE_BYTES, pause);
                fio::run(&server, load, &files.path(""))?;
            }
            let load = Load {
                block: MIB,
                align: MIB,
                ..Load::small("read", 16, full_disk::SIZE_BYTES, pause)
            };
            fio::run(&server, load, &files.path(""))?;
            let peak = server.peak_mebibytes()?;
            ensure!(peak > 0.0, "the server has no memory");
            server.stop()?;
            Ok(peak.into())
        })?;
        files.remove("full.vhd")
    }
}

/// Servers of the bench's disks.
#[derive(Clone, Copy)]
struct Serve<'a> {
    programs: &'a Programs,
    files: &'a Files,
}

impl Serve<'_> {
    fn at_socket(self, reader: Reader, file: &Path) -> Result<Server> {
        self.programs
            .serve(reader, file, &self.files.path("socket"))
    }

    /// A server of its own for one client, after it has read the whole disk for another: what the page cache holds, and in which
    /// pieces, is the server's own work. What the client gets.
    fn warm_to_fio(self, reader: Reader, file: &Path, load: Load) -> Result<Sample> {
        forget(file)?;
        let server = self.at_socket(reader, file)?;
        let whole = Load {
            block: MIB,
            align: MIB,
            until: Until::Requests(load.span / MIB),
            ..Load::small("read", 4, load.span, 0)
        };
        fio::run(&server, whole, &self.files.path(""))?;
        self.measure(server, load)
    }

    /// The same, with the page cache as it is.
    fn to_fio(self, reader: Reader, file: &Path, load: Load) -> Result<Sample> {
        let server = self.at_socket(reader, file)?;
        self.measure(server, load)
    }

    fn measure(self, server: Server, load: Load) -> Result<Sample> {
        let rate = fio::run(&server, load, &self.files.path(""))?;
        server.stop()?;
        Ok(rate)
    }
}

fn qemu_convert(from: &str, source: &Path, to: &str, target: &Path) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", from, "-O", to]);
    if to == "vpc" {
        // The exact size, not one rounded to cylinders.
        command.args(["-o", "subformat=dynamic,force_size=on"]);
    }
    command.arg(source).arg(target);
    command
}
