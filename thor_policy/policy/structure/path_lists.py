"""The lists of names, endings and folders behind path(text, base): what holds secrets, and what steers.

Owns nothing but data, all in lower case. Two kinds: `SECRET_*` are stores of secrets, `STEERS_*` instruct an
agent, a hook, a pipeline, an editor, a shell, a package manager or the system. A name with a slash is the end
of a path. Not in any list, as ordinary work changes them: Makefile, package.json, conftest.py, Dockerfile,
pyproject.toml. They run code too, but only when somebody runs the project.

Sources: github/gitignore; gitleaks' and trufflehog's lists of file names; the documentation of each tool.
"""

from __future__ import annotations


def _entries(text: str) -> list[str]:
    """The entries of a text, between commas. A line that begins with # is a comment."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [entry for part in " ".join(lines).split(",") if (entry := " ".join(part.split()))]


def _by_kind(texts: dict[str, str]) -> dict[str, str]:
    """The kind of each entry."""
    return {entry: kind for kind, text in texts.items() for entry in _entries(text)}


# ---------------------------------------------------------------- secrets

#: Folders that hold keys, credentials or sessions, whatever a file there is called.
SECRET_FOLDERS = frozenset(
    _entries("""
    .ssh, .gnupg, .pki, .password-store, .aws, .azure, .oci, .bluemix, .config/gcloud, .gcloud,
    .config/doctl, .config/gh, .config/glab-cli, .config/hub, .config/op, .config/rclone, .config/sops,
    .config/heroku, .config/github-copilot, .config/stripe, .snowsql, .vault.d, .ansible/vault, run/secrets,
    etc/ssl/private, kubernetes/pki, kubernetes.io/serviceaccount, keychains, .mozilla/firefox,
    .config/google-chrome, .config/chromium, .config/bravesoftware, .thunderbird, google/chrome/user data,
    .local/share/keyrings, .electrum, .bitcoin, .ethereum/keystore, gnupg
    """)
)
#: Files, by name or by the end of their path.
SECRET_NAMES = frozenset(
    _entries("""
    .env, .envrc, .flaskenv,
    # passwords of tools: networks, databases, mail
    .netrc, _netrc, .authinfo, .pgpass, pgpass.conf, .my.cnf, .mylogin.cnf, .htpasswd, .htdigest,
    .smbcredentials, .passwd-s3fs, .s3cfg, .boto, .rclone.conf, rclone.conf, .msmtprc, .fetchmailrc,
    .esmtprc, .erlang.cookie, .databrickscfg, .snowsql/config, .davfs2/secrets, .ldaprc,
    # registries of packages and images, hosts of code
    .npmrc, .pypirc, .gem/credentials, .cargo/credentials, .cargo/credentials.toml, .git-credentials,
    .config/git/credentials, .docker/config.json, .dockercfg, .dockerconfigjson, .composer/auth.json,
    .m2/settings.xml, .m2/settings-security.xml, .gradle/gradle.properties, .nuget/nuget.config,
    .circleci/cli.yml, .travis/config.yml, .netlify/config.json, .huggingface/token, huggingface/token,
    kaggle.json, .claude/.credentials.json, .codex/auth.json, .gemini/oauth_creds.json,
    # clouds, clusters, infrastructure
    kubeconfig, .kube/config, kubernetes/admin.conf, credentials.tfrc.json, .terraformrc, terraform.rc,
    terraform.tfstate, .vault-token, .vault_pass, vault_pass, vault-password, accesstokens.json,
    application_default_credentials.json, local.settings.json, azureauth.json, sops/age/keys.txt,
    # keys of applications
    master.key, config/master.key, credentials.yml.enc, secret_token.rb, wp-config.php, localsettings.php,
    secring.gpg, trustdb.gpg, private.asc, wallet.dat, key3.db, key4.db, logins.json, signons.sqlite,
    cookies.sqlite, cookies.txt, login data, web data, local state,
    # the system
    shadow, shadow-, gshadow, gshadow-, etc/passwd, passwd, etc/sudoers, sudoers, krb5.keytab, dev/mem,
    dev/kmem, proc/kcore, .rhosts, .secret, .secrets, unattend.xml, ntds.dit,
    # histories of shells and prompts
    .bash_history, .zsh_history, .zhistory, .histfile, .sh_history, .ash_history, .fish_history,
    fish_history, .history, .python_history, .node_repl_history, .irb_history, .psql_history,
    .mysql_history, .sqlite_history, .rediscli_history, .mongorc.js, .viminfo, .lesshst,
    consolehost_history.txt
    """)
)
#: Files that hold secrets in some projects, and none in others.
ABOUT_NAMES = frozenset(
    {"auth.json", "database.yml", "google-services.json", "googleservice-info.plist", "cookies", ".htaccess"}
)
#: Endings of keys, key stores, password stores, states.
SECRET_ENDINGS = tuple(
    _entries("""
    .pem, .key, .ppk, .p8, .p12, .pfx, .pkcs12, .jks, .jceks, .bks, .keystore, .truststore, .keytab, .kdb,
    .kdbx, .psafe3, .agilekeychain, .opvault, .1pux, .keychain, .keychain-db, .agekey, .ovpn, .tfstate,
    .tfstate.backup, .tfvars, .tfvars.json, .kubeconfig, .secret, .secrets, .token, .credentials, .env,
    .htpasswd, .rdp, .mobileprovision, .har
    """)
)
#: Beginnings, of the names of private keys and the like. Those that end in .pub are no secret.
SECRET_BEGINNINGS = tuple(
    _entries("""
    id_rsa, id_dsa, id_ecdsa, id_ed25519, id_xmss, ssh_host_
    """)
)
#: What stands for a model without values, at the end of a name.
EXAMPLE_ENDINGS = (".example", ".sample", ".template", ".dist", ".tmpl", ".tpl", ".j2", ".erb", ".schema")
#: The same before `.env`: example.env.
EXAMPLE_STEMS = frozenset({"example", "sample", "template", "dist"})
#: Endings of copies; what they are copies of decides.
BACKUP_ENDINGS = tuple(
    _entries("""
    ~, .bak, .backup, .bkp, .old, .orig, .save, .saved, .copy, .prev, .tmp, .temp, .swp, .swo, .rej,
    .dpkg-old, .rpmsave, .gz, .bz2, .xz, .zst, .zip, .tar, .tgz, .7z, .b64, .base64, .txt, .1, .2
    """)
)
#: Words that a name of secrets has, however they are joined. Several words stand for themselves in a row.
SECRET_WORDS = frozenset(
    _entries("""
    credential, credentials, creds, cred, secret, secrets, password, passwords, passwd, passwds, passphrase,
    passphrases, pwd, pwds, passcode, passcodes, pass words, token, tokens, apikey, apikeys, api key, api
    keys, access key, access keys, accesskey, accesskeys, private key, private keys, privatekey, privkey,
    privatekeys, secret key, signing key, signing keys, encryption key, encryption keys, ssh key, ssh keys,
    sshkey, deploy key, gpg key, master key, account key, gcp key, aws key, aws keys, host key, license key,
    keystore, keyring, keychain, kubeconfig, htpasswd, service account, service accounts, serviceaccount,
    firebase adminsdk, recovery codes, backup codes, recovery keys, seed phrase, mnemonic, mnemonics,
    connection string, connection strings, bearer, jwt, oauth creds, passwort, passwoerter, passwörter,
    kennwort, kennwörter, zugangsdaten, contrasena, contraseña, contrasenas, contraseñas, senha, senhas, mot
    de passe, mots de passe, пароль, пароли, 密码
    """)
)
#: Parts of a word that are enough: mypasswordfile. A word of `NOT_SECRET` is none.
SECRET_PARTS = ("password", "passwd", "secret", "credential", "apikey", "privatekey")
NOT_SECRET = frozenset({"secretary", "secretariat", "secretaries", "passwordless"})
#: Rows of words that only look like such: tokens of a design system or a tokenizer.
NOT_SECRET_ROWS = tuple(
    _entries("""
    design token, design tokens, special tokens, added tokens, theme tokens, color tokens
    """)
)
#: Words beside which a secret word is a topic: choosing-a-password.md, password_reset.py.
TOPIC_WORDS = tuple(
    _entries("""
    about, best practices, change, changing, check, checker, choose, choosing, design, entry, faq, field,
    forgot, forgotten, form, generation, generator, guide, guideline, guidelines, handler, handling, hash,
    hasher, hashing, how, input, login, management, manager, middleware, model, models, page, parser,
    policies, policy, reset, resetting, rotate, rotating, rotation, router, routes, rules, safe, schema,
    screen, serializer, service, spec, store, storing, strength, strong, test, tests, tokenizer, tutorial,
    types, utils, validate, validation, validator, view, views
    """)
)
#: Endings of code, documents and pictures: files about secrets, more than files of secrets.
ABOUT_ENDINGS = frozenset(
    _entries("""
    md, mdx, rst, adoc, tex, html, htm, py, pyi, ipynb, js, mjs, cjs, jsx, ts, tsx, vue, svelte, go, rs,
    java, kt, kts, scala, c, h, cc, cpp, hpp, cs, fs, rb, php, swift, m, ex, exs, erl, hs, ml, lua, pl, r,
    jl, dart, zig, css, scss, less, png, svg, jpg, jpeg, gif, webp, ico, proto, graphql, feature, snap
    """)
)

# ---------------------------------------------------------------- what steers

#: Folders, by name or by the end of their path; the value says what a file there steers.
STEERS_FOLDERS = _by_kind(
    {
        "git": """
            .git, .githooks, .git-hooks, .husky, .lefthook, .config/git
        """,
        "agent": """
            .claude, .codex, .cursor, .windsurf, .clinerules, .cline, .roo, .kilocode, .continue, .aider,
            .gemini, .qwen, .opencode, .amazonq, .kiro, .augment, .junie, .goose, .trae, .agent, .agents,
            .mcp, .config/claude, .config/opencode, .config/goose
        """,
        "pipeline": """
            .github, .gitlab, .circleci, .buildkite, .semaphore, .woodpecker, .tekton, .teamcity,
            .azure-pipelines, .azuredevops, .gitea, .forgejo, .builds, .jenkins, .harness, .dagger, .argo
        """,
        "editor": """
            .vscode, .vscode-server, .idea, .devcontainer, .zed, .fleet, .vs, .nova, .vim, .emacs.d,
            .config/nvim, .config/code, .config/zed, .jupyter, .ipython
        """,
        "shell": """
            .ssh, .config/fish, .bashrc.d, .zshrc.d, .oh-my-zsh, .config/autostart, .config/environment.d,
            .local/bin
        """,
        "packages": """
            .yarn, .cargo, .gem, .bundle, .m2, .gradle, .mvn, .docker, .config/pip, .pip, .config/uv,
            .nuget, .npm-global
        """,
        "system": """
            systemd, cron.d, cron.daily, cron.hourly, cron.weekly, cron.monthly, crontabs, launchagents,
            launchdaemons, sudoers.d, pam.d, profile.d, init.d, udev
        """,
    }
)
#: Files, by name or by the end of their path.
STEERS_NAMES = _by_kind(
    {
        "git": """
            .gitconfig, .gitattributes, .gitmodules, .lfsconfig, .gitmessage, lefthook.yml, lefthook.yaml,
            .lefthook.yml, .overcommit.yml, .pre-commit-config.yaml, .pre-commit-config.yml,
            .pre-commit-hooks.yaml, hooks/pre-commit, hooks/pre-push, hooks/post-checkout, hooks/post-merge,
            .huskyrc, .lintstagedrc
        """,
        "agent": """
            agents.md, agent.md, agents.override.md, claude.md, claude.local.md, gemini.md, qwen.md,
            warp.md, skill.md, copilot-instructions.md, .cursorrules, .cursorignore, .windsurfrules,
            .clinerules, .roorules, .roomodes, .goosehints, .rules, .continuerules, .augment-guidelines,
            .mcp.json, mcp.json, mcp_config.json, claude_desktop_config.json, .claude.json, opencode.json,
            opencode.jsonc, .aiderignore, .claudeignore, .geminiignore
        """,
        "pipeline": """
            .gitlab-ci.yml, .gitlab-ci.yaml, jenkinsfile, .travis.yml, .drone.yml, .drone.star,
            .drone.jsonnet, .woodpecker.yml, .woodpecker.yaml, appveyor.yml, .appveyor.yml, .cirrus.yml,
            .cirrus.star, bitbucket-pipelines.yml, cloudbuild.yaml, cloudbuild.yml, buildspec.yml,
            buildspec.yaml, .build.yml, wercker.yml, codefresh.yml, action.yml, action.yaml, renovate.json,
            .renovaterc, codeowners, .mergify.yml
        """,
        "editor": """
            .devcontainer.json, .vimrc, .gvimrc, .exrc, .nvimrc, .nvim.lua, .lvimrc, .dir-locals.el, .emacs,
            .spacemacs, .ideavimrc
        """,
        "shell": """
            .bashrc, .bash_profile, .bash_login, .bash_logout, .bash_aliases, .profile, .zshrc, .zshenv,
            .zprofile, .zlogin, .zlogout, .kshrc, .mkshrc, .cshrc, .tcshrc, .login, .logout, .inputrc,
            .envrc, .direnvrc, .xinitrc, .xprofile, .xsession, .xsessionrc, .pam_environment, .tmux.conf,
            .screenrc, .gdbinit, .lldbinit, .pdbrc, .pdbrc.py, .pythonrc, .pythonstartup, .rprofile,
            .renviron, .irbrc, .pryrc, .psqlrc, .sqliterc, .curlrc, .wgetrc, .mise.toml, mise.toml,
            .tool-versions
        """,
        "packages": """
            .npmrc, .yarnrc, .yarnrc.yml, .pnpmfile.cjs, pip.conf, pip.ini, .pypirc, .pydistutils.cfg,
            .condarc, .gemrc, nuget.config, bunfig.toml, .bazelrc, .terraformrc, gradle-wrapper.properties,
            maven-wrapper.properties, sitecustomize.py, usercustomize.py
        """,
        "system": """
            crontab, .crontab, authorized_keys, authorized_keys2, sudoers, ld.so.preload, ld.so.conf,
            sshd_config
        """,
    }
)
#: Beginnings of names.
STEERS_BEGINNINGS = _by_kind(
    {
        "agent": """
            .aider, .windsurf, .cursor, .clinerules, .roorules
        """,
        "pipeline": """
            jenkinsfile, .gitlab-ci, azure-pipelines, bitbucket-pipelines
        """,
        "packages": """
            .yarnrc
        """,
        "shell": """
            .envrc
        """,
        "git": """
            .huskyrc
        """,
    }
)
#: Endings of names.
STEERS_ENDINGS = _by_kind(
    {
        "packages": """
            .pth
        """,
        "agent": """
            .mdc, .instructions.md, .prompt.md, .chatmode.md, .agent.md
        """,
        "editor": """
            .code-workspace, .sublime-project
        """,
        "system": """
            .service, .timer, .socket, .desktop
        """,
        "pipeline": """
            .gitlab-ci.yml
        """,
    }
)
