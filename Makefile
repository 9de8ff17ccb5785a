# The bun pinned in package.json builds and tests, whatever bun is on the PATH.
BUN_VERSION := $(shell sed -n 's/^ *"bun": "\([0-9.]*\)",$$/\1/p' package.json)
BUN := node_modules/.bun-$(BUN_VERSION)

# With it, `cd` in a script may go elsewhere, and prints where.
unexport CDPATH

# Debian's names of the architectures. What is built for this machine's own goes to dist/.
MACHINE := $(patsubst x86_64,amd64,$(patsubst aarch64,arm64,$(shell uname -m)))
ARCH := $(MACHINE)
CPU := $(patsubst amd64,x64,$(patsubst arm64,aarch64,$(filter amd64 arm64,$(ARCH))))
$(if $(CPU),,$(error ARCH is amd64 or arm64, not "$(ARCH)"))
OUT := dist$(if $(filter-out $(MACHINE),$(ARCH)),/$(ARCH))

# Nothing in the working directory (.env, bunfig.toml) may change what an executable does.
COMPILE := --compile --no-compile-autoload-dotenv --no-compile-autoload-bunfig \
           --format=esm --minify --bytecode
# The bun that executables for another architecture embed. It need not run here.
ifneq ($(ARCH),$(MACHINE))
EMBEDDED := $(BUN)-$(ARCH)
COMPILE += --target=bun-linux-$(CPU) --compile-executable-path="$(CURDIR)/$(EMBEDDED)"
endif
SOURCES := $(shell find src -name '*.ts') package.json Makefile

SERVICES := $(patsubst units/%.socket,%,$(wildcard units/*.socket))

# Packagers set these.
PREFIX ?= /usr/local
override PREFIX := $(PREFIX:%/=%)
BINDIR ?= $(PREFIX)/bin
UNITDIR ?= $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib/systemd/system,$(error \
	systemd looks for no units under PREFIX=$(PREFIX): set UNITDIR, for example UNITDIR=/etc/systemd/system))
MANDIR ?= $(PREFIX)/share/man

# Mistakes that are said before anything is built.
$(if $(filter install uninstall,$(MAKECMDGOALS)),$(if $(UNITDIR),))
$(if $(and $(filter %install-user,$(MAKECMDGOALS)),$(SUDO_USER),$(filter 0,$(shell id -u))),$(error \
	as root this would change $(HOME): run it as $(SUDO_USER), without sudo))
$(if $(filter %install-user,$(MAKECMDGOALS)),$(if $(HOME),,$(error HOME is not set)))

# The tests speak to service managers of their own, not to the one that has started make.
unexport LISTEN_PID LISTEN_FDS LISTEN_FDNAMES NOTIFY_SOCKET WATCHDOG_PID WATCHDOG_USEC JOURNAL_STREAM

# These targets first look for what they need.
SET_UP := $(filter demo test check debian-root deb,$(MAKECMDGOALS))

.DELETE_ON_ERROR:
.PHONY: all demo unit test test-frameworks test-bun debian-root bench check format pack deb dist clean help \
        set-up install uninstall install-user uninstall-user

all: $(SERVICES:%=$(OUT)/%) ## Build the three executables into dist/ (the default; ARCH=arm64: into dist/arm64/)

# Bun leaves a large file where it runs, if it is interrupted.
$(OUT)/%: src/daemons/%.ts $(SOURCES) node_modules/.installed | $(EMBEDDED)
	@mkdir -p $(OUT)
	@echo "build  $@"
	@cd $(OUT) && "$(CURDIR)/$(BUN)" build $(COMPILE) "$(CURDIR)/$<" --outfile $(@F) >/dev/null

# The preload that units name, and the file that it loads if there is something to do. Another Bun ignores the bytecode.
# Bun prints lines of that file with an error, so they are short. A bundler cannot read it: programs import the source.
dist/register.js: $(SOURCES) node_modules/.installed
	@echo "build  $@"
	@$(BUN) build --target=bun --minify-syntax --minify-identifiers --format=cjs --bytecode \
	  src/activation/register/main.ts --outdir dist/register >/dev/null
	@$(BUN) build --target=bun --minify --external '*/main.js' src/activation/register.ts --outfile $@ >/dev/null

demo: all ## Start each service under systemd-socket-activate and be its client
	@$(BUN) test/demo.ts

# Under qemu-user, with a bun of the other architecture: the files that run.ts names.
ifdef EMBEDDED
EMULATE := test/emulate.sh run $(EMBEDDED)
endif

unit: node_modules/.installed ## Run the module's unit tests, which start no executable (ARGS="-t NAME")
	@$(BUN) test/run.ts test/unit $(ARGS)

# test/system boots a systemd, from ROOT if it is set.
test: all ## Run every test (ARGS="-t NAME" or a path; ROOT=DIR: test/system there; ARCH=arm64: some)
	@$(or $(EMULATE),$(BUN)) test/run.ts $(ARGS)

# Another Debian for the tests that boot a systemd: `make test ROOT=dist/roots/trixie`.
SUITE ?= trixie
debian-root: dist/roots/$(SUITE) ## Make dist/roots/SUITE, for ROOT (SUITE=trixie, bookworm, sid)

dist/roots/%: test/setup.sh | $(if $(SET_UP),set-up)
	@test/debian-root.sh $* $@

# `make test` has the quick ones of these.
test-frameworks: node_modules/.installed ## Run the tests of all frameworks, unchanged (ARGS="-t NAME")
	@FRAMEWORKS=all $(BUN) test test/package/unchanged $(ARGS)

test-bun: node_modules/.installed ## Run the module's tests on the oldest and the newest Bun (or VERSION=1.4.2)
	@test/versions.sh $(BUN) "$(VERSION)" $(ARGS)

bench: all dist/register.js ## Measure the services and their peers (ARGS="--quick", "--json FILE"; ROOT=DIR for another systemd as well)
	@$(BUN) test/bench/run.ts $(ARGS)

check: node_modules/.installed ## Check types, formatting, shell scripts, and the order of the layers
	@$(BUN) node_modules/typescript/bin/tsc
	@$(BUN) fmt --check
	@test/shellcheck.sh
	@$(BUN) test test/unit/layers.test.ts

format: node_modules/.installed ## Format the sources, and write the reference from their comments
	@$(BUN) test/package/reference.ts
	@$(BUN) fmt

pack: node_modules/.installed dist/register.js ## Pack the module for other projects: dist/socket-service-VERSION.tgz
	@test/package/pack.sh $(BUN)

# Debian orders 1.0.0~rc.1 before 1.0.0.
RELEASE := $(shell sed -n 's/^  "version": "\(.*\)",$$/\1/p' package.json)
DEB_VERSION = $(subst -,~,$(RELEASE))
DEB = dist/socket-service_$(DEB_VERSION)_$(ARCH).deb
deb: $(DEB) ## Build the Debian package into dist/ (ARCH=arm64: for that architecture)
$(DEB): $(SERVICES:%=$(OUT)/%) $(shell find units -type f) LICENSE
	@units/debian/build.sh $(DEB_VERSION) $(ARCH)

# From the same commit it makes the same files, wherever and whenever it runs.
dist: pack ## Put a release into dist/release/: packages for both architectures, the module, checksums
	@for arch in amd64 arm64; do $(MAKE) --no-print-directory deb ARCH=$$arch || exit; done
	@rm -rf dist/release && mkdir dist/release
	@cp dist/socket-service-$(RELEASE).tgz $(foreach arch,amd64 arm64,dist/socket-service_$(DEB_VERSION)_$(arch).deb) dist/release
	@cd dist/release && sha256sum *.* > SHA256SUMS && cat SHA256SUMS

install uninstall: PLACES = BINDIR='$(BINDIR)' UNITDIR='$(UNITDIR)' MANDIR='$(MANDIR)'
%-user: PLACES = BINDIR='$(HOME)/.local/bin' UNITDIR='$(HOME)/.config/systemd/user' \
                 MANDIR='$(HOME)/.local/share/man'
UNITS = OUT='$(OUT)' DESTDIR='$(DESTDIR)' $(PLACES) units/install.sh

install: all ## Install executables, units, hardening, manual (DESTDIR, PREFIX, BINDIR, UNITDIR, MANDIR)
	@$(UNITS) install system

uninstall: ## Remove exactly what install put there
	@$(UNITS) uninstall system

install-user: all ## Install for the calling user: under ~/.local and ~/.config/systemd/user
	@$(UNITS) install user

uninstall-user: ## Remove exactly what install-user put there
	@$(UNITS) uninstall user

clean: ## Remove what was built
	rm -rf dist

help: ## List these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

# What these lack is looked for, and installed, before anything else.
set-up:
	@test/setup.sh $(strip $(SET_UP) $(if $(filter test,$(SET_UP)),$(if $(EMBEDDED),$(ARCH))))

# The package bun is a stub until its install script has run: the link does what that would do.
node_modules/.installed: package.json bun.lock | $(BUN)
	@$(BUN) install --frozen-lockfile --ignore-scripts --silent
	@for name in bun bunx; do ln -sf ../../$$(readlink $(BUN)) node_modules/bun/bin/$$name.exe; done
	@touch $@

$(BUN): | $(if $(SET_UP),set-up)
	@test/bun.sh $@ $(BUN_VERSION)

# Another version, for the tests.
.PRECIOUS: node_modules/.bun-%
node_modules/.bun-%: | $(BUN)
	@test/bun.sh $@ $* $(BUN)

# That of the other architecture, to be embedded.
$(BUN)-$(ARCH): | $(BUN)
	@test/bun.sh $@ $(BUN_VERSION) $(BUN) $(CPU)
