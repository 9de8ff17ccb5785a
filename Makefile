# The bun pinned in package.json builds and tests, whatever bun is on the PATH.
BUN_VERSION := $(shell sed -n 's/^ *"bun": "\([0-9.]*\)",$$/\1/p' package.json)
BUN := node_modules/.bun-$(BUN_VERSION)

RELEASE := $(shell sed -n 's/^  "version": "\(.*\)",$$/\1/p' package.json)

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
COMPILE += --target=bun-linux-$(CPU) --compile-executable-path=$(EMBEDDED)
endif
SOURCES := $(shell find src -name '*.ts') package.json Makefile

# Sockets come last: a unit is only installed when what it starts is there. The drop-ins are for the
# system installation only: a user manager can apply little of them.
SERVICES := $(patsubst units/%.socket,%,$(wildcard units/*.socket))
DROPINS := $(patsubst units/%,%,$(wildcard units/*.d/*.conf))
UNITS := $(patsubst units/%,%,$(wildcard units/*.service units/*.socket))
SOCKETS := $(SERVICES:=.socket)
PAGES := $(notdir $(wildcard units/man/*))

# Where packagers expect to be asked.
PREFIX ?= /usr/local
override PREFIX := $(PREFIX:%/=%)
BINDIR ?= $(PREFIX)/bin
UNITDIR ?= $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib/systemd/system,$(error \
	systemd looks for no units under PREFIX=$(PREFIX): set UNITDIR, for example UNITDIR=/etc/systemd/system))
MANDIR ?= $(PREFIX)/share/man
USER_BINDIR = $(HOME)/.local/bin
USER_MANDIR = $(HOME)/.local/share/man
USER_UNITDIR = $(HOME)/.config/systemd/user

# Mistakes that are said before anything is built.
$(if $(filter install uninstall,$(MAKECMDGOALS)),$(if $(UNITDIR),))
$(if $(and $(filter %install-user,$(MAKECMDGOALS)),$(SUDO_USER),$(filter 0,$(shell id -u))),$(error \
	as root this would change $(HOME): run it as $(SUDO_USER), without sudo))

# $(call install_into,BINDIR,UNITDIR,MANDIR,UNITS,SYSTEMCTL) stops at the first failure. Executables
# and pages come first, so that no unit names one that is not there. A file takes the old one's place
# in one rename: a running executable can be replaced, and a start at that moment finds the old or the
# new one, whole. At the end it says what is left to do, also for the sockets that it has changed.
define install_into
	@case '$(1)' in [!/]*|*[!A-Za-z0-9/._+:,@~-]*) \
		echo 'BINDIR must be an absolute path of letters, digits and /._+:,@~-, not "$(1)"' >&2; \
		exit 1;; esac
	@set -e; umask 022; changed=; trap 'rm -f "$$new"' EXIT; trap 'exit 1' HUP INT TERM; \
	put() { \
		mode=$$1 target=$$2 new=$$2.new; shift 2; echo "install $$target"; mkdir -p "$${target%/*}"; \
		"$$@" > "$$new"; chmod $$mode "$$new"; \
		case $$target in *.socket) [ ! -e "$$target" ] || cmp -s "$$new" "$$target" || changed="$$changed $${target##*/}";; esac; \
		mv -fT "$$new" "$$target"; \
	}; \
	fill() { put 644 "$$1" sed 's|@BINDIR@|$(1)|' "$$2"; }; \
	for name in $(SERVICES); do put 755 '$(DESTDIR)$(1)'/$$name cat $(OUT)/$$name; done; \
	for page in $(PAGES); do fill '$(DESTDIR)$(3)'/man$${page##*.}/$$page units/man/$$page; done; \
	for unit in $(4); do fill '$(DESTDIR)$(2)'/$$unit units/$$unit; done; \
	echo 'Next, on the machine it is for: $(5) daemon-reload'; \
	[ -z "$$changed" ] || echo "then, as these have changed: $(5) stop$$changed; $(5) start$$changed"; \
	echo 'then: $(5) enable --now $(SOCKETS)'
endef

# $(call uninstall_from,BINDIR,UNITDIR,MANDIR,UNITS,SYSTEMCTL) removes also what an interrupted install
# left. A socket whose unit is gone goes on to listen, and systemctl cannot disable it.
define uninstall_from
	@[ -n '$(DESTDIR)' ] || for query in is-active is-enabled; do \
		! $(5) --quiet $$query $(SOCKETS) 2>/dev/null || { \
			echo 'First: $(5) disable --now $(SOCKETS)' >&2; exit 1; }; \
	done
	@status=0; \
	remove() { rm -fv "$$1" "$$1.new" || status=1; }; \
	for name in $(SERVICES); do remove '$(DESTDIR)$(1)'/$$name; done; \
	for page in $(PAGES); do remove '$(DESTDIR)$(3)'/man$${page##*.}/$$page; done; \
	for unit in $(4); do remove '$(DESTDIR)$(2)'/$$unit; done; \
	rmdir $(foreach name,$(sort $(filter %.d/,$(dir $(4)))),'$(DESTDIR)$(2)/$(name)') 2>/dev/null; \
	[ $$status = 0 ] || exit; \
	echo 'Next, on the machine it was for: $(5) daemon-reload'
endef

# The tests speak to service managers of their own, not to the one that has started make.
unexport LISTEN_PID LISTEN_FDS LISTEN_FDNAMES NOTIFY_SOCKET WATCHDOG_PID WATCHDOG_USEC JOURNAL_STREAM

# Those that look for what they need first.
SET_UP := $(filter demo test debian-root deb,$(MAKECMDGOALS))

.DELETE_ON_ERROR:
.PHONY: all demo test test-frameworks test-bun debian-root bench check format pack deb dist clean help set-up install uninstall install-user uninstall-user

all: $(SERVICES:%=$(OUT)/%) ## Build the three executables into dist/ (the default; ARCH=arm64: into dist/arm64/)

$(OUT)/%: src/daemons/%.ts $(SOURCES) node_modules/.installed | $(EMBEDDED)
	@mkdir -p $(OUT)
	@echo "build  $@"
	@$(BUN) build $(COMPILE) $< --outfile $@ >/dev/null

# The preload for other programs: units name this file, so it is one, at a place of its own.
dist/register.js: $(SOURCES) node_modules/.installed
	@mkdir -p dist
	@echo "build  $@"
	@$(BUN) build --target=bun --minify src/activation/register.ts --outfile $@ >/dev/null

demo: all ## Start each service under systemd-socket-activate and be its client
	@$(BUN) test/demo.ts

# Under qemu-user, with a bun of the other architecture: the services, and what calls libc. Not the
# tests of TCP_INFO, of which qemu-user returns four bytes (backlog, queue, what a reset has left);
# of load; of what takes seconds everywhere; of a process that is outside of the namespace.
ifdef EMBEDDED
EMULATE := test/emulate.sh run $(EMBEDDED)
EMULATED := test/activate/greeting test/activate/listener test/activate/deadlines \
            $(addprefix test/unit/,barrier connection describe event-loop layout libc listen.test log \
              max-connections notify udp watchdog) \
            -t '^(?!.*(backlog of|leaves the descriptor|handshake|reset|under load|five seconds|drops|idle from|without the JIT|another process))' --timeout 30000
endif

# The tests build what they need: test/build.ts. test/system boots a systemd, from ROOT if it is set.
test: node_modules/.installed $(if $(EMBEDDED),all) ## Pass every test (ARGS="-t NAME" or a path; ROOT=DIR for another systemd; ARCH=arm64)
	@skipped=$$(mktemp); trap 'cat "$$skipped"; rm "$$skipped"' EXIT; trap 'exit 1' HUP INT TERM; \
	SKIPPED=$$skipped $(or $(EMULATE),$(BUN)) test $(or $(ARGS),$(if $(ROOT),test/system),$(EMULATED),--coverage)

# Another Debian for the tests that boot a systemd: `make test ROOT=dist/roots/trixie`.
SUITE ?= trixie
debian-root: dist/roots/$(SUITE) ## Make dist/roots/SUITE, for ROOT (SUITE=trixie, bookworm, sid)

# debootstrap's mounts are in a namespace of their own: an interrupted one leaves none behind.
dist/roots/%: test/setup.sh | $(if $(SET_UP),set-up)
	@mkdir -p dist/roots/cache && rm -rf --one-file-system $@ $@.new
	@echo "make   $@"
	@unshare --mount --propagation=private debootstrap --variant=minbase --include=$$(test/setup.sh inside) \
		--cache-dir=$(CURDIR)/dist/roots/cache $* $@.new >/dev/null
	@mv $@.new $@ && touch $@

# `make test` has the quick ones of these.
test-frameworks: node_modules/.installed ## Pass the tests of all frameworks, unchanged (ARGS="-t NAME")
	@FRAMEWORKS=all $(BUN) test test/package/unchanged $(ARGS)

# The oldest Bun is that of "engines". `make test` has the pinned one.
test-bun: node_modules/.installed ## Pass the module's tests on the oldest and the newest Bun (or VERSION=1.4.2)
	@newest=$$($(BUN) info bun version) || exit; \
	for version in $(or $(VERSION),$$(sed -n 's/.*"bun": ">=\(.*\)"/\1/p' package.json) $$newest); do \
		[ $$version = $(BUN_VERSION) ] || $(MAKE) --no-print-directory test-bun-$$version || exit; \
	done

# What starts none of the executables.
test-bun-%: node_modules/.bun-%
	@echo "test   on bun $*"
	@$< test $(or $(ARGS),test/unit test/activate/hot test/activate/wrapped test/activate/register test/package/readme test/package/frameworks)

bench: all ## Measure the services and their peers (ARGS="--quick", "--json FILE"; ROOT=DIR for another systemd as well)
	@$(BUN) test/bench/run.ts $(ARGS)

check: node_modules/.installed ## Check types and formatting
	@$(BUN) node_modules/typescript/bin/tsc
	@$(BUN) fmt --check

format: node_modules/.installed ## Format the sources, and write the reference from their comments
	@$(BUN) test/package/reference.ts
	@$(BUN) fmt

# What other projects install: the module's sources, their declarations, and the module's own README.
# It is put together in dist/package, because a package's README is that at its root.
pack: node_modules/.installed dist/register.js ## Pack the module for other projects: dist/socket-service-VERSION.tgz
	@rm -rf dist/package dist/declarations && mkdir -p dist/package/src
	@$(BUN) node_modules/typescript/bin/tsc --noEmit false --declaration --emitDeclarationOnly --outDir dist/declarations
	@mv dist/declarations/src/activation dist/package/types && rm -r dist/declarations
	@cp -r src/activation dist/package/src
	@mv dist/package/src/activation/README.md dist/package
	@cp package.json LICENSE dist/register.js dist/package
	@chmod -R u=rwX,go=rX dist/package
	@cd dist/package && ../../$(BUN) pm pkg delete private scripts devDependencies
	@cd dist/package && ../../$(BUN) pm pack --quiet --destination ..

# Debian orders 1.0.0~rc.1 before 1.0.0. The date of the files is the last commit's, and without git
# that of package.json, so that two builds are the same.
DEB_VERSION = $(subst -,~,$(RELEASE))
DEB = dist/socket-service_$(DEB_VERSION)_$(ARCH).deb
deb: $(DEB) ## Build the Debian package into dist/ (ARCH=arm64: for that architecture)
$(DEB): $(SERVICES:%=$(OUT)/%) $(shell find units -type f) LICENSE
	@echo "build  $@"
	@rm -rf dist/deb && mkdir -p dist/deb && cp -r units/debian dist/deb
	@date=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || stat --format=%Y package.json)}; \
	printf '%s\n' 'socket-service ($(DEB_VERSION)) unstable; urgency=medium' '' '  * See the README.' '' \
		" -- $$(sed -n 's/^Maintainer: //p' units/debian/control)  $$(date --utc -Rd @$$date)" \
		> dist/deb/debian/changelog
	@cd dist/deb && MAKEFLAGS= DEB_HOST_ARCH=$(ARCH) DEB_RULES_REQUIRES_ROOT=no DH_QUIET=1 debian/rules --silent binary >/dev/null
	@rm -r dist/deb

# From the same commit it makes the same files, wherever and whenever it runs.
dist: pack ## Put a release into dist/release/: packages for both architectures, the module, checksums
	@for arch in amd64 arm64; do $(MAKE) --no-print-directory deb ARCH=$$arch || exit; done
	@rm -rf dist/release && mkdir dist/release
	@cp dist/socket-service-$(RELEASE).tgz $(foreach arch,amd64 arm64,dist/socket-service_$(DEB_VERSION)_$(arch).deb) dist/release
	@cd dist/release && sha256sum *.* > SHA256SUMS && cat SHA256SUMS

install: all ## Install executables, units, hardening, manual (DESTDIR, PREFIX, BINDIR, UNITDIR, MANDIR)
	$(call install_into,$(BINDIR),$(UNITDIR),$(MANDIR),$(DROPINS) $(UNITS),systemctl)

uninstall: ## Remove exactly what install put there
	$(call uninstall_from,$(BINDIR),$(UNITDIR),$(MANDIR),$(DROPINS) $(UNITS),systemctl)

install-user: all ## Install for the calling user: under ~/.local and ~/.config/systemd/user
	$(call install_into,$(USER_BINDIR),$(USER_UNITDIR),$(USER_MANDIR),$(UNITS),systemctl --user)

uninstall-user: ## Remove exactly what install-user put there
	$(call uninstall_from,$(USER_BINDIR),$(USER_UNITDIR),$(USER_MANDIR),$(UNITS),systemctl --user)

clean: ## Remove what was built
	rm -rf dist

help: ## List these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

# What these lack is looked for, and installed, before anything else.
set-up:
	@test/setup.sh $(strip $(SET_UP) $(if $(filter test,$(SET_UP)),$(if $(EMBEDDED),$(ARCH))))

# The package bun is a stub until its install script has run: the link does what that would do.
node_modules/.installed: package.json bun.lock | $(BUN)
	@$(BUN) install --frozen-lockfile --ignore-scripts --silent
	@for name in bun bunx; do ln -sf ../../$$(readlink $(BUN)) node_modules/bun/bin/$$name.exe; done
	@touch $@

# The executables are optional dependencies of the package bun, one for each platform, of which a
# package manager installs what may run here. Without a network, npm gives up at once.
NPM := npm install --prefix . --ignore-scripts --no-package-lock --no-audit --no-fund --no-progress --prefer-offline \
       --loglevel=error --fetch-retries=1 --fetch-retry-mintimeout=1000 --fetch-timeout=20000
$(BUN): | $(if $(SET_UP),set-up)
	@echo "fetch  bun $(BUN_VERSION)"
	@rm -rf node_modules/.fetch && mkdir -p node_modules/.fetch
	@cd node_modules/.fetch && echo '{}' > package.json && \
	if command -v npm >/dev/null; then $(NPM) bun@$(BUN_VERSION) >/dev/null; \
	elif command -v bun >/dev/null; then bun add --ignore-scripts --silent bun@$(BUN_VERSION); \
	else echo "make: npm or bun is needed to fetch bun $(BUN_VERSION): install one of them" >&2; exit 1; fi
	@cd node_modules && rm -rf bun @oven && mv .fetch/node_modules/bun .fetch/node_modules/@oven . && rm -rf .fetch
	@for bun in node_modules/@oven/*/bin/bun; do \
	  if [ "$$($$bun --version 2>/dev/null)" = $(BUN_VERSION) ]; then ln -sf "$${bun#node_modules/}" $@; exit 0; fi; \
	done; echo "make: no bun $(BUN_VERSION) that was fetched runs on this machine" >&2; exit 1

# $(call fetch_bun,PACKAGE,VERSION) fetches another bun beside the pinned one.
define fetch_bun
	@echo "fetch  $(1) $(2)"
	@mkdir -p $@.d && cd $@.d && echo '{}' > package.json && \
	../../$(BUN) add --ignore-scripts --silent --cpu='*' $(1)@$(2) && \
	ln -sf $(@F).d/node_modules/$(1)/bin/bun ../$(@F)
endef

# That of the same platform, for the tests.
.PRECIOUS: node_modules/.bun-%
node_modules/.bun-%: | $(BUN)
	$(call fetch_bun,$(patsubst %/bin/bun,%,$(shell readlink $(BUN))),$*)

# That of the other architecture, to be embedded.
$(BUN)-$(ARCH): | $(BUN)
	$(call fetch_bun,@oven/bun-linux-$(CPU),$(BUN_VERSION))
