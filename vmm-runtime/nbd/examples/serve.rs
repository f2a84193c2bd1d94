//! Serves a raw file or a VHD at a unix socket until standard input ends: a small program to measure and to try clients
//! with. `serve SOCKET raw|vhd FILE`

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use paddock_nbd::{Export, Server};
use paddock_vhd::{Access, BlockDevice, Extent, ExtentKind, Gate, IoError, Pool, Vhd};

struct Raw {
    file: File,
    size: u64,
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> IoError {
    move |source| IoError::Io {
        disk: "raw".into(),
        operation,
        source: Arc::new(source),
    }
}

impl BlockDevice for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        self.file.read_exact_at(buf, offset).map_err(failed("read"))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.file.write_all_at(buf, offset).map_err(failed("write"))
    }

    fn flush(&self) -> Result<(), IoError> {
        self.file.sync_data().map_err(failed("sync"))
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), IoError> {
        Err(failed("discard")(io::ErrorKind::Unsupported.into()))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let zeros = [0; 65536];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(zeros.len() as u64);
            self.write_at(&zeros[..step as usize], offset + done)?;
            done += step;
        }
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        Ok(vec![Extent {
            offset,
            len,
            kind: ExtentKind::Data,
        }])
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, format, file] = arguments.as_slice() else {
        return Err("usage: serve SOCKET raw|vhd FILE".into());
    };
    let path = Path::new(file);
    let disk: Arc<dyn BlockDevice> = if format == "vhd" {
        let pool = Pool::open(path.parent().ok_or("a file has a folder")?)?;
        let name = path.file_name().ok_or("a file has a name")?;
        Arc::new(Vhd::open(
            &pool,
            Path::new(name),
            Access::ReadWrite,
            Gate::open(),
        )?)
    } else {
        let file = File::options().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        Arc::new(Raw { file, size })
    };
    let server = Server::unix(Path::new(socket), vec![Export::new("", disk)])?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    server.stop();
    Ok(())
}
