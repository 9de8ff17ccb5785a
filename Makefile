# The bun pinned in package.json builds and tests, whatever bun is on the PATH.
VERSION := $(shell sed -n 's/^ *"bun": "\(.*\)",$$/\1/p' package.json)
BUN     := node_modules/.bun-$(VERSION)

SERVICES := socket-service socket-service-accepted socket-service-inet
SOURCES  := $(shell find src -name '*.ts') package.json Makefile

# Nothing in the working directory (.env, bunfig.toml) may change what an executable does.
COMPILE := --compile --no-compile-autoload-dotenv --no-compile-autoload-bunfig \
           --format=esm --minify --bytecode

# Where packagers expect to be asked. systemd looks for units under /usr and /usr/local by itself.
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
UNITDIR ?= $(PREFIX)/lib/systemd/system
USER_BINDIR = $(HOME)/.local/bin
USER_UNITDIR = $(HOME)/.config/systemd/user

SOCKETS := $(SERVICES:=.socket)
UNITS := $(SOCKETS) socket-service.service socket-service-accepted@.service socket-service-inet@.service
# UNIT:FILE, for the system installation only: a user manager can apply little of it.
HARDENING := socket-service.service:socket-service \
	socket-service-accepted@.service:per-connection socket-service-inet@.service:per-connection

# A new file takes the old one's place in one rename, so that running executables can be replaced
# and a start at that moment finds either the old or the new one, whole.
# $(call replace,MODE,COMMAND,TARGET): TARGET with what COMMAND prints, in MODE.
replace = $(2) > "$(3).new" && chmod $(1) "$(3).new" && mv -f "$(3).new" "$(3)"

# $(call install_into,BINDIR,UNITDIR)
define install_into
	@case '$(1)' in [!/]*|*[!A-Za-z0-9/._+:,@~-]*) \
		echo 'BINDIR must be an absolute path of letters, digits and /._+:,@~-, not "$(1)"' >&2; \
		exit 1;; esac
	install -d '$(DESTDIR)$(1)' '$(DESTDIR)$(2)'
	@set -e; for name in $(SERVICES); do \
		echo "install $(DESTDIR)$(1)/$$name"; \
		$(call replace,755,cat "dist/$$name",$(DESTDIR)$(1)/$$name); \
	done; \
	for unit in $(UNITS); do \
		echo "install $(DESTDIR)$(2)/$$unit"; \
		$(call replace,644,sed 's|@BINDIR@|$(1)|g' "units/$$unit",$(DESTDIR)$(2)/$$unit); \
	done
endef

# $(call uninstall_from,BINDIR,UNITDIR)
define uninstall_from
	@for name in $(SERVICES); do rm -fv '$(DESTDIR)$(1)'/"$$name"; done
	@for unit in $(UNITS); do rm -fv '$(DESTDIR)$(2)'/"$$unit"; done
endef

# The tests speak to service managers of their own, not to the one that has started make.
unexport LISTEN_PID LISTEN_FDS LISTEN_FDNAMES NOTIFY_SOCKET WATCHDOG_PID WATCHDOG_USEC JOURNAL_STREAM

.DELETE_ON_ERROR:
.PHONY: all demo test bench check format clean help set-up install uninstall install-user uninstall-user

all: $(SERVICES:%=dist/%) ## Build the three executables into dist/ (the default)

dist/%: src/daemons/%.ts $(SOURCES) node_modules/.installed
	@mkdir -p dist
	@echo "build  $@"
	@$(BUN) build $(COMPILE) $< --outfile $@ >/dev/null

demo: all ## Start each service under systemd-socket-activate and be its client
	@$(BUN) test/demo.ts

# The tests build what they need: test/build.ts.
test: node_modules/.installed ## Pass every test (ARGS="-t NAME" or a path for some)
	@skipped=$$(mktemp); trap 'cat "$$skipped"; rm "$$skipped"' EXIT; trap 'exit 1' HUP INT TERM; \
	SKIPPED=$$skipped $(BUN) test $(or $(ARGS),--coverage)

bench: all ## Measure the services and their peers (ARGS="--quick", "--json FILE")
	@$(BUN) test/bench/run.ts $(ARGS)

check: node_modules/.installed ## Check types and formatting
	@$(BUN) node_modules/typescript/bin/tsc
	@$(BUN) fmt --check

format: node_modules/.installed ## Format the sources
	@$(BUN) fmt

install: all ## Install executables, units and hardening (DESTDIR, PREFIX, BINDIR, UNITDIR)
	$(call install_into,$(BINDIR),$(UNITDIR))
	@set -e; for pair in $(HARDENING); do \
		directory='$(DESTDIR)$(UNITDIR)'/"$${pair%%:*}.d"; \
		echo "install $$directory/50-hardening.conf"; \
		install -d "$$directory"; \
		$(call replace,644,cat "units/hardening/$${pair#*:}.conf",$$directory/50-hardening.conf); \
	done
	@echo 'Next, on the machine it is for: systemctl daemon-reload'
	@echo 'then: systemctl enable --now $(SOCKETS)'

uninstall: ## Remove exactly what install put there
	$(call uninstall_from,$(BINDIR),$(UNITDIR))
	@for pair in $(HARDENING); do \
		directory='$(DESTDIR)$(UNITDIR)'/"$${pair%%:*}.d"; \
		rm -fv "$$directory/50-hardening.conf"; \
		rmdir "$$directory" 2>/dev/null || true; \
	done
	@echo 'Next, on the machine it was for: systemctl daemon-reload'

install-user: all ## Install for the calling user: ~/.local/bin, ~/.config/systemd/user
	$(call install_into,$(USER_BINDIR),$(USER_UNITDIR))
	@echo 'Next: systemctl --user daemon-reload'
	@echo 'then: systemctl --user enable --now $(SOCKETS)'

uninstall-user: ## Remove exactly what install-user put there
	$(call uninstall_from,$(USER_BINDIR),$(USER_UNITDIR))
	@echo 'Next: systemctl --user daemon-reload'

clean: ## Remove what was built
	rm -rf dist

help: ## List these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

# What the demo and the tests lack is looked for, and installed, before anything else.
set-up:
	@test/setup.sh $(filter demo test,$(MAKECMDGOALS))

node_modules/.installed: package.json bun.lock | $(BUN)
	@$(BUN) install --frozen-lockfile --ignore-scripts --silent
	@touch $@

# The package bun holds only an install script; its optional dependencies hold the executables,
# one for each platform, of which a package manager installs what may run here.
$(BUN): | $(if $(filter demo test,$(MAKECMDGOALS)),set-up)
	@echo "fetch  bun $(VERSION)"
	@rm -rf node_modules/.fetch && mkdir -p node_modules/.fetch && echo '{}' > node_modules/.fetch/package.json
	@cd node_modules/.fetch && \
	if command -v npm >/dev/null; then npm install --ignore-scripts --no-package-lock --no-audit --no-fund --silent bun@$(VERSION); \
	elif command -v bun >/dev/null; then bun add --ignore-scripts --silent bun@$(VERSION); \
	else echo "make: npm or bun is needed to fetch bun $(VERSION): install one of them" >&2; exit 1; fi
	@rm -rf node_modules/bun node_modules/@oven
	@mv node_modules/.fetch/node_modules/bun node_modules/.fetch/node_modules/@oven node_modules/
	@rm -rf node_modules/.fetch
	@for bun in node_modules/@oven/*/bin/bun; do \
	  if [ "$$($$bun --version 2>/dev/null)" = $(VERSION) ]; then ln -s "$${bun#node_modules/}" $@; exit 0; fi; \
	done; echo "make: no bun $(VERSION) that was fetched runs on this machine" >&2; exit 1
