//! Recognising what is not a VHD, so that a refusal can name it.

/// How many bytes from the beginning of a file [`name`] looks at.
pub(crate) const LOOK_AT: usize = 512;

/// The name of the format whose mark the file begins with.
pub(crate) fn name(start: &[u8]) -> Option<&'static str> {
    let marks: [(usize, &[u8], &'static str); 9] = [
        (0, b"vhdxfile", "a VHDX"),
        (0, b"QFI\xfb", "a qcow2 image"),
        (0, b"KDMV", "a VMDK"),
        (0, b"COWD", "a VMDK (of ESX)"),
        (0, b"# Disk DescriptorFile", "the descriptor of a VMDK"),
        (0x40, b"\x7f\x10\xda\xbe", "a VDI"),
        (0, b"QED\0", "a QED image"),
        (0, b"LUKS\xba\xbe", "a LUKS container"),
        (0, b"paddock linked disk", "the descriptor of a linked disk"),
    ];
    let found = marks.iter().find(|(offset, mark, _)| {
        start
            .get(*offset..)
            .is_some_and(|rest| rest.starts_with(mark))
    });
    found.map(|&(_, _, name)| name)
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn marks_are_told_apart() {
        assert_eq!(name(b"vhdxfile\0\0"), Some("a VHDX"));
        assert_eq!(name(b"QFI\xfb\0\0\0\x03"), Some("a qcow2 image"));
        assert_eq!(name(b"KDMV\x01\0"), Some("a VMDK"));
        assert_eq!(
            name(b"# Disk DescriptorFile\n"),
            Some("the descriptor of a VMDK")
        );
        let mut vdi = [0; 512];
        vdi[0x40..0x44].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        assert_eq!(name(&vdi), Some("a VDI"));
        assert_eq!(name(b""), None);
        assert_eq!(name(&[0; 512]), None);
    }
}
