"""Programs whose words matter to the structure itself: wrappers, interpreters, builtins of the shell.

Owns the built-in entries, in the notation of `programs`. They say how words are read, never what a program
does: kinds come from a pack's table. Pure data.
"""

from __future__ import annotations

from typing import Any

_SHELL = {
    "options": "-c^shell -s^stdin -[abefhklmnprtuvxBCEHPT] -O,-o,+o,+O=text --login --norc --noprofile "
    "--posix "
    "--restricted --verbose --rcfile,--init-file=path --version",
    "args": "script",
    "runs_input": True,
}
_CODE_E = {"options": "-e=code", "args": "script", "runs_input": True}

#: Shells: their code is parsed as a command line of its own.
SHELLS = frozenset((
    "sh", "bash", "dash", "zsh", "ksh", "ash", "mksh", "rbash", "yash", "posh", "fish", "csh", "tcsh",
))  # fmt: skip

#: Builtins that change what the words of later commands mean.
OPAQUE = frozenset(
    ("source", ".", "alias", "unalias", "trap", "coproc", "enable", "hash", "bind", "complete", "fc")
)

#: Words of the shell's own syntax. The parser takes them for programs behind `!`.
RESERVED = frozenset((
    "{", "}", "if", "then", "elif", "else", "fi", "for", "while", "until", "do", "done", "case", "esac",
))  # fmt: skip

BUILTIN: dict[str, Any] = {
    "!,{,if,then,elif,else,while,until,do": {"args": "assign"},
    # ------------------------------------------------ wrappers
    "env": {
        "options": "-[i0v] --ignore-environment --null --debug -u,--unset=text -C,--chdir=dir "
        "-S,--split-string=shell",
        "args": "assign",
    },
    "nice": {"options": "-n,--adjustment=text -#", "args": "command"},
    "nohup,builtin,busybox,chronic,caffeinate,fakeroot,torsocks,gosu,tini,dumb-init,setarch,noglob": {
        "args": "command"
    },
    "timeout": {
        "options": "-k,--kill-after=text -s,--signal=text --preserve-status --foreground -[v] --verbose",
        "args": "text command",
    },
    "time": {"options": "-[pvaq] -f,--format=text -o,--output=out", "args": "command"},
    "command": {"options": "-[p]", "args": "command", "subcommands": {"-v,-V": {"args": "text"}}},
    "exec": {"options": "-[cl] -a=text", "args": "command"},
    "xargs,gxargs": {
        "options": "-[0rtpxo] --null --no-run-if-empty --verbose --exit --interactive -I=text "
        "--replace[=text] "
        "-n,--max-args=text -P,--max-procs=text -L,--max-lines=text -d,--delimiter=text -s,--max-chars=text "
        "-E=text -a,--arg-file=path",
        "args": "command",
    },
    "parallel": {"options": "-[0kXmt] -j,--jobs=text -I=text -a=path", "args": "shell", "runs_input": True},
    "stdbuf": {"options": "-i,--input=text -o,--output=text -e,--error=text", "args": "command"},
    "setsid": {"options": "-[cfw]", "args": "command"},
    "ionice": {"options": "-c,--class=text -n,--classdata=text -[t] -p=text", "args": "command"},
    "taskset": {"options": "-[c]", "args": "text command"},
    "chrt": {"options": "-[bfior]", "args": "text command"},
    "sudo": {
        "options": "-[AbEHnPSkKv] -i^shell -s^shell -l --login^shell --shell^shell -u,--user=text "
        "-g,--group=text "
        "-h,--host=text -p,--prompt=text -C=text -T=text -r=text -t=text -D,--chdir=dir -R,--chroot=path",
        "args": "assign",
    },
    "doas": {"options": "-[nsL] -u=text -C=path", "args": "command"},
    "su,runuser": {
        "options": "-[lmpP] --login -c,--command=shell -s,--shell=path -g=text -G=text",
        "args": "text",
    },
    "pkexec": {"options": "--user=text", "args": "command"},
    "chroot": {"options": "--userspec=text --groups=text", "args": "path command"},
    "watch": {"options": "-[bcdegtx] -n,--interval=text", "args": "shell"},
    "script": {"options": "-[aefq] -c,--command=shell -T,--log-timing=out", "args": "out"},
    "flock": {"options": "-[nsxuo] -w=text -E=text -c=shell", "args": "path command"},
    "strace,ltrace": {"options": "-[fFqv] -e=text -o=out -p=text -s=text", "args": "command"},
    "valgrind": {"args": "command"},
    "systemd-run,unshare,nsenter,firejail,proxychains,proxychains4,xvfb-run,dbus-run-session,unbuffer,"
    "faketime": {"args": "command"},
    "eval": {"args": "shell"},
    "trap": {"args": "any"},
    "find,gfind": {
        "options": "-name,-iname,-path,-ipath,-wholename,-iwholename=names -regex,-iregex,-type,-xtype,"
        "-size,-mtime,-atime,"
        "-ctime,-mmin,-amin,-cmin,-maxdepth,-mindepth,-perm,-user,-group,-printf,-links,-lname,-inum,"
        "-regextype,"
        "-fstype=text -newer,-anewer,-cnewer,-samefile,-files0-from=path -not -o -a -or -and -print "
        "-print0 -ls "
        "-empty -readable -writable -executable -prune -depth -mount -xdev -true -false -quit "
        "-nouser "
        "-daystart -H -P -delete -exec,-execdir,-ok,-okdir=exec -fprint,-fprint0,-fls=out",
        "args": "path",
        "wipes": "-delete",
    },
    # ------------------------------------------------ interpreters
    ",".join(sorted(SHELLS)): _SHELL,
    "source,.": {"args": "script", "runs_input": True},
    "python,pypy,ipython": {
        "options": "-[bBdEhIOPqsSuvVx] -OO -c=code -m=module -W,-X=text --version --help",
        "args": "script",
        "runs_input": True,
    },
    "perl": {
        "options": "-[acdflnpsStTuUvwWX] -0[=text] -i[=text] -e,-E=code -F,-I,-M,-m,-l[=text] --version",
        "args": "script",
        "runs_input": True,
    },
    "ruby": {
        "options": "-[acdlnpsSvwW] -e=code -r=text -I=path -C=dir -i[=text] --version",
        "args": "script",
        "runs_input": True,
    },
    "node,nodejs": {
        "options": "-e,--eval=code -p,--print=code -r,--require=path --import=path --loader=path -c "
        "--check -v "
        "--version --test --watch --input-type=text --enable-source-maps --no-warnings",
        "args": "script",
        "runs_input": True,
    },
    "php": {
        "options": "-r,-B,-R,-E=code -f,-F=script -[alnvimqwH] -d=text -c=path -S=text -t=path --version",
        "args": "script",
        "runs_input": True,
    },
    "lua,luajit": {"options": "-e=code -l=text -[viE]", "args": "script", "runs_input": True},
    "R,Rscript": {
        "options": "-e=code -f,--file=script --no-save --vanilla --slave --no-restore -[q] --version",
        "args": "script",
        "runs_input": True,
    },
    "osascript": {"options": "-e=code -l=text", "args": "script", "runs_input": True},
    "pwsh,powershell": {
        "options": "-Command,-c,-EncodedCommand,-e,-enc=code -File,-f=script -NoProfile -NonInteractive",
        "args": "code",
        "runs_input": True,
    },
    "deno,bun": {
        "options": "-e,--eval=code -p,--print=code",
        "args": "script",
        "runs_input": True,
        "subcommands": {
            "run": {"options": "-A --allow-all", "args": "script", "runs_input": True},
            "eval": {"args": "code"},
        },
    },
    "tclsh,wish,expect,elixir,iex,erl,swift,scala,groovy,julia,octave,sbcl,guile,racket,clojure,ghci,"
    "runghc,irb,jshell,"
    "kotlin,ts-node,tsx,rhino,jrunscript,qjs,gjs,nu,xonsh,elvish,raku,janet,crystal,dart,dc,ed,ex,m4,at,"
    "batch,gdb,lldb": (_CODE_E),
    # ------------------------------------------------ builtins that move or assign
    "cd,pushd": {"options": "-[LPen@]", "args": "text"},
    "popd": {},
    "git": {"options": "-C=dir"},
    "make,gmake": {"options": "-C,--directory=dir -f,--file,--makefile=script", "args": "maybe"},
    "tar,bsdtar": {"options": "-C,--directory=dir", "args": "maybe", "bundles": True},
    "rm": {
        "options": "-[rRfvidI] --recursive --force --no-preserve-root --preserve-root --verbose --dir "
        "--one-file-system",
        "args": "out",
        "wipes": "always",
    },
    "chmod,chown,chgrp": {
        "options": "-[Rcfvh] --recursive --reference=path --preserve-root --no-preserve-root",
        "args": "mode out",
        "wipes": "-R,--recursive",
    },
    "mv,shred,srm,unlink,rmdir": {"args": "out", "wipes": "always"},
    "tee": {"options": "-[aip]", "args": "out"},
}
