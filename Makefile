# The bun pinned in package.json builds and tests, whatever bun is on the PATH.
VERSION := $(shell sed -n 's/^ *"bun": "\(.*\)",$$/\1/p' package.json)
BUN     := node_modules/.bun-$(VERSION)

SERVICES := socket-service socket-service-accepted socket-service-inet
SOURCES  := $(shell find src -name '*.ts') package.json Makefile

# Nothing in the working directory (.env, bunfig.toml) may change what an executable does.
COMPILE := --compile --no-compile-autoload-dotenv --no-compile-autoload-bunfig \
           --format=esm --minify --bytecode

.DELETE_ON_ERROR:
.PHONY: all demo test check format clean help

all: $(SERVICES:%=dist/%) ## Build the three executables into dist/ (the default)

dist/%: src/daemons/%.ts $(SOURCES) node_modules/.installed
	@mkdir -p dist
	@echo "build  $@"
	@$(BUN) build $(COMPILE) $< --outfile $@ >/dev/null

demo: all ## Start each service under systemd-socket-activate and be its client
	@$(BUN) test/demo.ts

test: all ## Pass every test (ARGS="-t NAME" or a path for some)
	@$(BUN) test $(ARGS)

check: node_modules/.installed ## Check types and formatting
	@$(BUN) node_modules/typescript/bin/tsc
	@$(BUN) fmt --check

format: node_modules/.installed ## Format the sources
	@$(BUN) fmt

clean: ## Remove what was built
	rm -rf dist

help: ## List these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

node_modules/.installed: package.json bun.lock | $(BUN)
	@$(BUN) install --frozen-lockfile --ignore-scripts --silent
	@touch $@

# The package bun holds only an install script; its optional dependencies hold the executables,
# one for each platform, of which a package manager installs what may run here.
$(BUN):
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
