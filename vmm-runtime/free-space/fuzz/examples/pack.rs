//! Packs the image of a disk into an input: `pack FLAGS IMAGE >INPUT`. What an
//! input looks like is told in the library's `fuzzing` module.

use std::io::Write;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(flags), Some(image)) = (args.next(), args.next()) else {
        return Err(std::io::Error::other("usage: pack FLAGS IMAGE"));
    };
    let image = std::fs::read(image)?;
    let sectors: Vec<&[u8]> = image.chunks(512).collect();
    let mut input = vec![flags.parse().unwrap_or(0)];
    input.extend((sectors.len() as u32).to_le_bytes());
    let mut at = 0;
    while let Some(sector) = sectors.get(at) {
        let fill = sector[0];
        let same = sectors[at..]
            .iter()
            .take(0x7fff)
            .take_while(|sector| sector.iter().all(|&byte| byte == fill))
            .count();
        if same > 0 {
            if fill != 0 {
                input.extend((at as u32).to_le_bytes());
                input.extend((0x8000 | same as u16).to_le_bytes());
                input.push(fill);
            }
            at += same;
            continue;
        }
        let len = 512 - sector.iter().rev().take_while(|&&byte| byte == 0).count();
        input.extend((at as u32).to_le_bytes());
        input.extend((len as u16).to_le_bytes());
        input.extend(&sector[..len]);
        at += 1;
    }
    std::io::stdout().write_all(&input)
}
