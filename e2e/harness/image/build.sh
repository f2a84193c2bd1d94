#!/usr/bin/env bash
# Builds the guest image of the lab and the tests, from files of Debian packages
# alone: no mount, no loop device, no root.
#
#   build.sh [OUTDIR]
#
# Writes into OUTDIR (default: ${PADDOCK_CACHE:-~/.cache/paddock}/images/<key>):
#   tiny-linux.img      raw disk: MBR, FAT boot partition (syslinux, kernel,
#                       initrd), ext4 data partition
#   tiny-linux.vmlinuz  the kernel, for direct kernel boot
#   tiny-linux.initrd   its initrd
#   SHA256SUMS          of the three
#   inputs              the key: a hash of everything the outputs depend on
# and prints the folder as its last line. Does nothing if OUTDIR was made from the
# same inputs. The same inputs give the same bytes.
#
# The guest is for tests: it has a shell without a password on its console and
# does over HTTP whatever it is asked. Never use it for anything else.
set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C TZ=UTC
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# 2025-01-01T00:00:00Z, the time of every file and superblock.
export SOURCE_DATE_EPOCH=1735689600
export E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH

readonly data_label=paddock-data
readonly data_uuid=7061646f-636b-4000-8000-646174610001
readonly hash_seed=7061646f-636b-4000-8000-646174610002
readonly disk_id='\x50\x44\x4b\x01'
readonly fat_serial=50444b02
readonly mib=1048576
readonly data_mib=8

# In load order: nothing in the guest resolves dependencies. The first group brings
# up the data disk and the network of a virtio guest and the power button, the second
# the disks of other buses.
readonly first_modules=(
    virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_mmio
    virtio_blk failover net_failover virtio_net button evdev
)
readonly second_modules=(
    scsi_common scsi_mod virtio_scsi libata ata_piix sd_mod
)

fail() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 1
}

need_tool() { # TOOL PACKAGE
    command -v "$1" >/dev/null 2>&1 || fail "$1 not found: install the package $2"
}

need_file() { # FILE PACKAGE
    [[ -r $1 ]] || fail "$1 cannot be read: install the package $2"
}

# The newest cloud kernel that has both an image and modules.
kernel_version() {
    local image version newest=
    for image in /boot/vmlinuz-*-cloud-amd64; do
        version=${image#/boot/vmlinuz-}
        [[ -r $image && -d /lib/modules/$version ]] || continue
        newest=$(printf '%s\n%s\n' "$newest" "$version" | sort -V | tail -n 1)
    done
    [[ -n $newest ]] || fail "no kernel in /boot/vmlinuz-*-cloud-amd64: install the package linux-image-cloud-amd64"
    printf '%s\n' "$newest"
}

# The file of a module; file names have - or _ where the module's name has _.
module_file() { # MODULE
    local found
    found=$(find "/lib/modules/$kernel/kernel" -name "${1//_/[-_]}.ko" -print -quit)
    [[ -n $found ]] || fail "module $1 not found as .ko under /lib/modules/$kernel"
    printf '%s\n' "$found"
}

input_key() {
    {
        (cd "$here" && find build.sh syslinux.cfg files -type f -print0 | sort -z | xargs -0 sha256sum)
        sha256sum <"/boot/vmlinuz-$kernel"
        local module
        for module in "${first_modules[@]}" "${second_modules[@]}"; do
            sha256sum <"$(module_file "$module")"
        done
        sha256sum <"$busybox"
        sha256sum <"$mbr"
        sha256sum <"$(command -v syslinux)"
        mke2fs -V 2>&1
        mcopy -V
        lz4 --version
        cpio --version | head -n 1
    } | sha256sum | cut -c 1-32
}

# The root file system of the guest, in $work/root.
lay_out_root() {
    local root=$work/root applet group module
    mkdir -p "$root"/{bin,data,dev,proc,run,sys,tmp,modules,root}
    cp -R "$here/files/." "$root/"
    ln -s /run/index.html "$root/www/index.html"
    cp "$busybox" "$root/bin/busybox"
    while read -r applet; do
        [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
    done < <("$busybox" --list)

    for group in first second; do
        local -n modules=${group}_modules
        for module in "${modules[@]}"; do
            cp "$(module_file "$module")" "$root/modules/$module.ko"
            printf '%s\n' "$module" >>"$root/modules/$group"
        done
    done

    find "$root" -type d -exec chmod 0755 {} +
    find "$root" -type f -exec chmod 0644 {} +
    chmod 0755 "$root/init" "$root/bin/busybox" "$root"/sbin/* "$root"/www/cgi-bin/* "$root"/etc/acpi/PWRF/*
    find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

# lz4 in the kernel's (legacy) frame: unpacking it costs an emulated CPU next to
# nothing, and reading half the bytes through the BIOS saves more than that.
pack_initrd() {
    (cd "$work/root" && find . -print0 | sort -z |
        cpio --null --create --format=newc --owner=0:0 --reproducible --quiet) >"$work/initrd.cpio"
    lz4 -l -9 -q -f "$work/initrd.cpio" "$out/tiny-linux.initrd"
}

write_at() { # FILE OFFSET, bytes on stdin
    dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# One MBR partition entry. CHS values are the "too large, use LBA" ones.
partition_entry() { # STATUS TYPE FIRST_SECTOR SECTORS
    local value escaped=
    for value in "$3" "$4"; do
        escaped+=$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $((value & 255)) $((value >> 8 & 255)) $((value >> 16 & 255)) $((value >> 24 & 255)))
    done
    # The escapes are the point.
    # shellcheck disable=SC2059
    printf "\\x$1\\xfe\\xff\\xff\\x$2\\xfe\\xff\\xff$escaped"
}

build_disk() {
    local image=$out/tiny-linux.img boot_bytes boot_mib data_start
    boot_bytes=$(($(stat -c %s "$out/tiny-linux.vmlinuz") + $(stat -c %s "$out/tiny-linux.initrd")))
    # 2 MiB for the FATs, syslinux and rounding.
    boot_mib=$(((boot_bytes + mib - 1) / mib + 2))
    data_start=$(((1 + boot_mib) * mib))
    truncate -s $((data_start + data_mib * mib)) "$image"

    write_at "$image" 0 <"$mbr"
    # shellcheck disable=SC2059
    printf "$disk_id" | write_at "$image" 440
    partition_entry 80 0e $((mib / 512)) $((boot_mib * mib / 512)) | write_at "$image" 446
    partition_entry 00 83 $((data_start / 512)) $((data_mib * mib / 512)) | write_at "$image" 462
    printf '\x55\xaa' | write_at "$image" 510

    # mtools reads no configuration of the user's, and skips its geometry checks.
    export MTOOLSRC=/dev/null MTOOLS_SKIP_CHECK=1
    mformat -i "$image@@$mib" -T $((boot_mib * mib / 512)) -h 16 -s 63 -H $((mib / 512)) -N "$fat_serial" -v PADDOCK ::
    syslinux --install --offset "$mib" "$image"
    cp "$out/tiny-linux.vmlinuz" "$work/vmlinuz"
    cp "$out/tiny-linux.initrd" "$work/initrd"
    cp "$here/syslinux.cfg" "$work/syslinux.cfg"
    touch -d "@$SOURCE_DATE_EPOCH" "$work/vmlinuz" "$work/initrd" "$work/syslinux.cfg"
    mcopy -m -i "$image@@$mib" "$work/syslinux.cfg" "$work/vmlinuz" "$work/initrd" ::

    mke2fs -q -F -t ext4 -b 1024 -m 0 -L "$data_label" -U "$data_uuid" \
        -E "offset=$data_start,hash_seed=$hash_seed,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard" \
        "$image" "$((data_mib * mib / 1024))k"
}

need_tool syslinux syslinux
need_tool mcopy mtools
need_tool mke2fs e2fsprogs
need_tool cpio cpio
need_tool lz4 lz4
busybox=/bin/busybox
need_file "$busybox" busybox-static
mbr=/usr/lib/SYSLINUX/mbr.bin
[[ -r $mbr ]] || mbr=/usr/lib/syslinux/mbr/mbr.bin
need_file "$mbr" syslinux-common
kernel=$(kernel_version)
need_file "/boot/vmlinuz-$kernel" linux-image-cloud-amd64
[[ $("$busybox" --list) == *udhcpc* ]] || fail "$busybox has no udhcpc: install the package busybox-static"

key=$(input_key)
target=${1:-${PADDOCK_CACHE:-$HOME/.cache/paddock}/images/$key}
mkdir -p "$target"
target=$(cd "$target" && pwd)

if [[ -f $target/inputs && $(<"$target/inputs") == "$key" ]] &&
    (cd "$target" && sha256sum --check --status SHA256SUMS 2>/dev/null); then
    printf 'build.sh: up to date (kernel %s)\n' "$kernel" >&2
    printf '%s\n' "$target"
    exit 0
fi

# In the target's own file system, so that every output appears by a rename.
work=$(mktemp -d "$target/.build-XXXXXX")
trap 'rm -rf "$work"' EXIT
out=$work/out
mkdir "$out"

cp "/boot/vmlinuz-$kernel" "$out/tiny-linux.vmlinuz"
lay_out_root
pack_initrd
build_disk
(cd "$out" && sha256sum tiny-linux.img tiny-linux.initrd tiny-linux.vmlinuz >SHA256SUMS)
printf '%s\n' "$key" >"$out/inputs"

# `inputs` goes first and comes back last: it vouches for the others.
rm -f "$target/inputs"
for name in tiny-linux.img tiny-linux.vmlinuz tiny-linux.initrd SHA256SUMS inputs; do
    mv -f "$out/$name" "$target/$name"
done
printf 'build.sh: built with kernel %s\n' "$kernel" >&2
printf '%s\n' "$target"
