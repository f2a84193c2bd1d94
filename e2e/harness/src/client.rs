//! Talking to a lab's supervisor.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};

use crate::fault::Fault;
use crate::folder::LabFolder;
use crate::protocol::{Channel, LabStatus, Reply, Request, UpRequest};

/// A conversation with a running supervisor.
pub struct Client {
    channel: Channel,
}

impl Client {
    /// With the supervisor of the lab in `folder`; `None` when it does not run.
    pub fn connect(folder: &LabFolder) -> Result<Option<Self>> {
        Ok(folder.connect()?.map(|stream| Self {
            channel: Channel::new(stream),
        }))
    }

    /// With a supervisor that must run.
    pub fn existing(folder: &LabFolder) -> Result<Self> {
        folder.existing()?;
        match Self::connect(folder)? {
            Some(client) => Ok(client),
            None => bail!(
                "the lab in {} does not run; start it with `paddock-lab up`",
                folder.path().display()
            ),
        }
    }

    fn ask(&mut self, request: &Request, progress: &mut dyn FnMut(&str)) -> Result<Reply> {
        self.channel.send(request, &[])?;
        loop {
            match self.channel.receive::<Reply>()? {
                Some(Reply::Progress(text)) => progress(&text),
                Some(Reply::Error(text)) => bail!("{text}"),
                Some(reply) => return Ok(reply),
                None => bail!("the supervisor ended; see `paddock-lab logs supervisor`"),
            }
        }
    }

    /// Starts what is missing; returns what is not as asked.
    pub fn up(
        &mut self,
        request: UpRequest,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<String>> {
        match self.ask(&Request::Up(request), progress)? {
            Reply::Up { missing } => Ok(missing),
            other => unexpected(&other),
        }
    }

    /// What the lab is doing.
    pub fn status(&mut self) -> Result<LabStatus> {
        match self.ask(&Request::Status, &mut |_| {})? {
            Reply::Status(status) => Ok(status),
            other => unexpected(&other),
        }
    }

    /// Breaks or mends something; returns what was done.
    pub fn fault(&mut self, fault: Fault) -> Result<String> {
        match self.ask(&Request::Fault(fault), &mut |_| {})? {
            Reply::Done(text) => Ok(text),
            other => unexpected(&other),
        }
    }

    /// A descriptor to enter `target` by, and whether it is a process.
    pub fn enter(&mut self, target: &str) -> Result<(bool, OwnedFd)> {
        match self.ask(
            &Request::Enter {
                target: target.to_owned(),
            },
            &mut |_| {},
        )? {
            Reply::Enter { process } => {
                let descriptor = self
                    .channel
                    .take_descriptors()
                    .pop()
                    .context("the supervisor sent no descriptor")?;
                Ok((process, descriptor))
            }
            other => unexpected(&other),
        }
    }

    /// A VM's host, its connected console, and the console's log if there is one.
    pub fn console(
        &mut self,
        namespace: &str,
        name: &str,
    ) -> Result<(String, OwnedFd, Option<OwnedFd>)> {
        let request = Request::Console {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        match self.ask(&request, &mut |_| {})? {
            Reply::Console { host } => {
                let mut descriptors = self.channel.take_descriptors().into_iter();
                let stream = descriptors
                    .next()
                    .context("the supervisor sent no descriptor")?;
                Ok((host, stream, descriptors.next()))
            }
            other => unexpected(&other),
        }
    }
}

fn unexpected<T>(reply: &Reply) -> Result<T> {
    bail!(
        "unexpected answer of the supervisor: {reply:?}; is it of another version? `paddock-lab down` and `up` again"
    )
}
